-- Return the value of KEYS[1] (nil when there is none) and keep it ARGV[1] milliseconds from now.
-- A TTL is only ever made longer: jitter must not shorten the life of a value that was just used,
-- and a value stored without a TTL keeps having none. A server that takes no writes still gives the value (pcall).
local value = redis.call('GET', KEYS[1])
if value then
  local left = redis.call('PTTL', KEYS[1])
  if left >= 0 and left < tonumber(ARGV[1]) then
    redis.pcall('PEXPIRE', KEYS[1], ARGV[1])
  end
end
return value
