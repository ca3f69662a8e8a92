-- How often renders of a video ended in a death; see service/attempts.py.
-- KEYS: attempts (hash by name of 'deaths open at'). ARGV: now ('' for the server's clock), how long attempts are
--   remembered, name, what to do: 'settle', deaths at least, '1' when an open attempt counts or ''; 'begin', attempt;
--   'close', attempt, '1' when nothing is left to remember or ''. All times are milliseconds. Returns deaths.
local now = time_of(ARGV[1])
local kept, name, verb = tonumber(ARGV[2]), ARGV[3], ARGV[4]
local known = redis.call('HGET', KEYS[1], name)
local deaths, open, at = 0, '', now
if known then
  local counted, attempt, since = string.match(known, '^(%d+) (%S*) (%d+)$')
  if since and now - tonumber(since) < kept then
    deaths, open, at = tonumber(counted), attempt, tonumber(since)
  end
end

if verb == 'settle' then
  deaths = math.max(deaths + (open ~= '' and ARGV[6] == '1' and 1 or 0), tonumber(ARGV[5]))
  open = ''
elseif verb == 'begin' then
  open, at = ARGV[5], now
elseif open ~= ARGV[5] then
  return deaths  -- another attempt has begun, or this one was settled
else
  open = ''
  if ARGV[6] == '1' then deaths = 0 end
end

local count = string.format('%d %s %.0f', deaths, open, at)
if deaths == 0 and open == '' then
  if known then redis.call('HDEL', KEYS[1], name) end
elseif count ~= known then
  redis.call('HSET', KEYS[1], name, count)
end
if verb == 'begin' and redis.call('HLEN', KEYS[1]) > 10000 then  -- of nodes that died and videos that are not wanted again
  local some = redis.call('HRANDFIELD', KEYS[1], 50, 'WITHVALUES')
  for number = 1, #some, 2 do
    local since = string.match(some[number + 1], '(%d+)$')
    if now - (tonumber(since) or 0) >= kept then redis.call('HDEL', KEYS[1], some[number]) end
  end
end
return deaths
