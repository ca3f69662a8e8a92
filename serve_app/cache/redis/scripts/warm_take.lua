-- A warm-up that was claimed gets its new runner. KEYS: unfinished, record (hash). ARGV: id, runner.
-- Returns {state, request}, {} when there is none any more or it has ended.
local known = redis.call('HMGET', KEYS[2], 'state', 'request', 'final')
if not known[1] or not known[2] or known[3] == '1' then
  redis.call('ZREM', KEYS[1], ARGV[1])
  return {}
end
redis.call('HSET', KEYS[2], 'runner', ARGV[2])
return {known[1], known[2]}
