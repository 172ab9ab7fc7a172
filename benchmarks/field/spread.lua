-- makes wrk ask one origin after the other, as a proxy's client; what it sends is made beforehand
local requests, at = {}, 0
for authority in os.getenv("ORIGINS"):gmatch("%S+") do
  requests[#requests + 1] =
    "GET http://" .. authority .. "/small HTTP/1.1\r\nHost: " .. authority .. "\r\n\r\n"
end
request = function()
  at = at % #requests + 1
  return requests[at]
end
