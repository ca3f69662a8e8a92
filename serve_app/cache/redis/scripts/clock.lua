-- Before every script: the time it goes by, in whole milliseconds, and the microseconds beyond.
-- given: '' for the server's own clock, the same for all replicas; else milliseconds, for tests.
local function time_of(given)
  if given ~= '' then
    return tonumber(given), 0
  end
  local time = redis.call('TIME')
  return time[1] * 1000 + math.floor(time[2] / 1000), time[2] % 1000
end
