-- Before scripts that use a value: keep it at least so many milliseconds from now.
-- A TTL is only ever made longer: jitter must not shorten the life of a value that was just used, and a value stored
-- without a TTL keeps having none. A server that takes no writes still gives what it has (pcall).
-- Returns whether there is one.
local function keep(key, milliseconds)
  local left = redis.call('PTTL', key)
  if left >= 0 and left < tonumber(milliseconds) then
    redis.pcall('PEXPIRE', key, milliseconds)
  end
  return left ~= -2
end
