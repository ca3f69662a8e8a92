-- The newest state of one job, written anew if Redis lost it; never over a deletion or an end.
-- KEYS: index, unfinished, record. ARGV: now ('' for the server's clock), id, the new record, created at (seconds),
--   expires at, unfinished ('1' or ''). Times are milliseconds unless said.
-- Returns {'stored'} | {'gone'} when it was deleted or has expired | {'ended', record} when it has ended before.
local now = time_of(ARGV[1])
local id = ARGV[2]
local old = redis.call('GET', KEYS[3])
if old == 'deleted' or now >= tonumber(ARGV[5]) then
  redis.call('ZREM', KEYS[2], id)
  return {'gone'}
end
if old then
  local status = cjson.decode(old).status
  if status == 'completed' or status == 'failed' then
    redis.call('ZREM', KEYS[2], id)
    return {'ended', old}
  end
end
redis.call('SET', KEYS[3], ARGV[3], 'PXAT', ARGV[5])
redis.call('ZADD', KEYS[1], ARGV[4], id)
if ARGV[6] == '1' then
  redis.call('ZADD', KEYS[2], string.format('%.0f', now), id)
else
  redis.call('ZREM', KEYS[2], id)
end
return {'stored'}
