-- Before scripts that tell whose heartbeat has stopped: milliseconds that a step of the server's clock does not change.
-- They go on between two calls of any process by what the clock went on, unless that is less than nothing or more than
-- `longest`: then it was set, or no process could send heartbeats either, and no time has passed for them.
local function steady_of(given, key, longest)
  local now = time_of(given)
  local steady, at = string.match(redis.call('GET', key) or '', '^(%d+) (%d+)$')
  if not steady then
    redis.call('SET', key, string.format('%.0f %.0f', now, now))
    return now
  end
  local passed = now - tonumber(at)
  steady = tonumber(steady)
  if passed < 0 or passed > longest then
    passed = 0
  elseif passed < 200 then
    return steady + passed  -- not a write for every call
  end
  redis.call('SET', key, string.format('%.0f %.0f', steady + passed, now))
  return steady + passed
end
