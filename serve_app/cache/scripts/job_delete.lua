-- Put a tombstone where a record was. KEYS: index, unfinished, record. ARGV: id, how long the tombstone is kept (milliseconds).
-- Returns 1 when there was a record.
local old = redis.call('SET', KEYS[3], 'deleted', 'GET', 'PX', ARGV[2])
redis.call('ZREM', KEYS[1], ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[1])
return old and old ~= 'deleted' and 1 or 0
