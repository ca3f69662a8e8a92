-- A warm-up's newest state; with a request, a new one. KEYS: unfinished (sorted set by last write), record (hash), the
--   steady time.
-- ARGV: now ('' for the server's clock), id, runner ('' for an end that anybody may tell), state (JSON), expires at,
--   final ('1' or ''), request (JSON, '' for none), how long a warm-up may be silent. Times are milliseconds.
-- Returns 'stored' | 'lost' when another runner has it | 'ended' when it has ended before | 'gone' when there is none.
local now = steady_of(ARGV[1], KEYS[3], tonumber(ARGV[8]) + 500)
local id, runner, final, request = ARGV[2], ARGV[3], ARGV[6], ARGV[7]
local known = redis.call('HMGET', KEYS[2], 'runner', 'final')
if not known[1] and request == '' then
  redis.call('ZREM', KEYS[1], id)
  return 'gone'
end
if known[2] == '1' then
  redis.call('ZREM', KEYS[1], id)
  return 'ended'
end
if known[1] and runner ~= '' and known[1] ~= runner then
  return 'lost'
end
redis.call('HSET', KEYS[2], 'runner', runner, 'state', ARGV[4], 'final', final)
if request ~= '' then
  redis.call('HSET', KEYS[2], 'request', request)
end
redis.call('PEXPIREAT', KEYS[2], ARGV[5])
if final == '1' then
  redis.call('ZREM', KEYS[1], id)
else
  redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
end
return 'stored'
