-- A warm-up's newest state; with a request, a new one. KEYS: unfinished (sorted set by last write), record (hash), all by
--   when they expire (sorted set), the steady time. Nothing has a TTL, which an eviction policy could use.
-- ARGV: now ('' for the server's clock), id, runner ('' for an end that any process may tell), state (JSON), expires at,
--   final ('1' or ''), request (JSON, '' for none), most unfinished ones, how long a warm-up may be silent. Times are
--   milliseconds.
-- Returns 'stored' | 'lost' when another runner has it | 'ended' when it has ended before | 'gone' when there is none
--   | 'full' when there are too many for a new one.
local now = steady_of(ARGV[1], KEYS[4], tonumber(ARGV[9]) + 500)
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
if not known[1] and redis.call('ZCARD', KEYS[1]) >= tonumber(ARGV[8]) then
  return 'full'
end
redis.call('HSET', KEYS[2], 'runner', runner, 'state', ARGV[4], 'final', final)
redis.call('PERSIST', KEYS[2])  -- an earlier release gave it a TTL
redis.call('ZADD', KEYS[3], ARGV[5], id)
if final == '1' then
  redis.call('HDEL', KEYS[2], 'request')  -- no runner takes over any more
  redis.call('ZREM', KEYS[1], id)
  return 'stored'
end
if request ~= '' then
  redis.call('HSET', KEYS[2], 'request', request)
end
redis.call('ZADD', KEYS[1], string.format('%.0f', now), id)
return 'stored'
