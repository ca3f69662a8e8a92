-- Before the scripts of invalidations: a clock that never goes back, in whole microseconds.
-- It is the server's own, or what was kept or heard of when that is later, as after the server's was set back. What is
-- kept is at most a second behind; a server that takes no writes still tells the time (pcall).
-- Returns the time, and whether the server's clock is behind it: then some may have heard of a time a moment later.
local function time_after(given, key, heard)
  local now, micros = time_of(given)
  local kept = tonumber(redis.call('GET', key) or '0')
  local time = math.max(now * 1000 + micros, kept, tonumber(heard))
  if time - kept >= 1000000 then
    redis.pcall('SET', key, string.format('%.0f', time))
  end
  return time, time - (now * 1000 + micros) > 1000000
end
