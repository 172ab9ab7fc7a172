-- makes wrk ask as a proxy's client: target and Host are set once, no Lua runs per request
wrk.path = os.getenv("TARGET")
wrk.headers["Host"] = os.getenv("HOST")
