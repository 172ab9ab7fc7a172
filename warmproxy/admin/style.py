"""How the status page looks. It is one text, because its hash is what the page's
Content-Security-Policy admits."""

STYLE = """
:root { --bg: #fff; --fg: #1b1f24; --dim: #5a636e; --line: #d8dde3; --head: #f4f6f8;
  --good: #1f7a3d; --warn: #8a5a00; --bad: #b3261e; --warn-bg: #fff6e0; --bad-bg: #fdecea;
  --link: #0b57b0; --chart: #2563a8; --fill: #2563a833; }
@media (prefers-color-scheme: dark) { :root { --bg: #14171b; --fg: #e4e7eb; --dim: #9aa4b0;
  --line: #333a43; --head: #1d2127; --good: #6fce8b; --warn: #f0be5c; --bad: #ff8f85;
  --warn-bg: #2c2616; --bad-bg: #321c1b; --link: #8ab8ff; --chart: #7fb2f0; --fill: #7fb2f033; } }
* { box-sizing: border-box }
body { margin: 0; padding: 12px 16px; background: var(--bg); color: var(--fg);
  font: 14px/1.4 system-ui, sans-serif; font-variant-numeric: tabular-nums }
a { color: var(--link) }
a:focus-visible, .wide:focus-visible { outline: 3px solid var(--link); outline-offset: 2px }
.skip { position: absolute; left: -999px }
.skip:focus { left: 16px; top: 4px; background: var(--bg); padding: 4px 8px; z-index: 2 }
header { display: flex; flex-wrap: wrap; align-items: baseline; gap: 0 16px }
h1 { font-size: 20px; margin: 0 }
h1 small, .refresh, .axis, .soon, footer { color: var(--dim); font-weight: normal }
h1 small { font-size: 14px }
.refresh { margin: 0 0 0 auto; font-size: 12px }
dl { display: flex; flex-wrap: wrap; gap: 8px 32px; margin: 12px 0 }
dt, figcaption { color: var(--dim); font-size: 12px }
dd { margin: 0; font-size: 20px; font-weight: 600 }
small { font-size: 12px; font-weight: normal; color: var(--dim) }
dd small { display: block }
.charts { display: grid; grid-template-columns: repeat(3, 1fr); gap: 0 24px }
figure { margin: 0 }
figcaption b { color: var(--fg) }
.axis { grid-column: 1 / -1; margin: 2px 0 0; font-size: 12px }
figure svg { display: block; width: 100%; height: 48px; border-bottom: 1px solid var(--line) }
svg polyline { fill: none; stroke: var(--chart); stroke-width: 1.5;
  vector-effect: non-scaling-stroke }
svg .goal { stroke: var(--dim); stroke-dasharray: 3 3 }
svg polygon { fill: var(--fill); stroke: none }
td svg { display: block; width: 64px; height: 20px }
h2 { font-size: 14px; margin: 12px 0 4px }
ul { margin: 0 0 12px; padding: 0; list-style: none }
li { padding: 3px 8px; border-left: 4px solid var(--line); margin: 2px 0; overflow-wrap: anywhere }
li.is-warn { border-color: var(--warn); background: var(--warn-bg) }
li.is-bad { border-color: var(--bad); background: var(--bad-bg) }
p.fine { color: var(--good) }
.wide { overflow-x: auto; border: 1px solid var(--line); border-radius: 4px }
table { border-collapse: collapse; width: 100%; font-size: 13px; line-height: 1.3 }
caption { text-align: left; padding: 6px 8px; color: var(--dim) }
th, td { text-align: left; vertical-align: top; padding: 4px 6px; border-top: 1px solid var(--line);
  white-space: nowrap }
thead th { background: var(--head); font-weight: 600 }
thead a { color: inherit }
tbody th { font-weight: 600; position: sticky; left: 0; background: var(--bg); z-index: 1;
  white-space: normal }
tbody th span:first-child { display: inline-block; max-width: 26em;
  overflow-wrap: break-word }
td:last-child { white-space: normal; min-width: 8em; max-width: 22em; font-size: 12px;
  overflow-wrap: anywhere }
.number { text-align: right }
tr.is-warn th { box-shadow: inset 4px 0 var(--warn) }
tr.is-bad th { box-shadow: inset 4px 0 var(--bad) }
.squares { font-size: 11px; letter-spacing: 1px; color: var(--good) }
tr.is-warn .squares { color: var(--warn) }
tr.is-bad .squares { color: var(--bad) }
.squares i { font-style: normal; color: var(--dim) }
.tag { font-size: 11px; font-weight: normal; padding: 0 5px; border: 1px solid var(--line);
  border-radius: 8px; color: var(--dim); white-space: nowrap }
td.says { border-top: 0; padding-top: 0; color: var(--dim); white-space: normal }
td.says span { display: inline-block; position: sticky; left: 6px; max-width: calc(100vw - 48px) }
tr.is-warn + tr .says { color: var(--warn) }
tr.is-bad + tr .says { color: var(--bad) }
footer { margin-top: 12px; font-size: 12px }
footer a { margin-right: 12px }
@media (max-width: 600px) { body { padding: 8px }
  tbody th span:first-child { max-width: 11em }
  .charts { grid-template-columns: 1fr; gap: 8px }
  dl { gap: 8px 20px } dd { font-size: 17px } }
@media print { .refresh, .skip, footer { display: none } .wide { overflow: visible; border: 0 }
  tr { break-inside: avoid } table { font-size: 9px } }
"""
