-- The end of a flight, by the holder of its token alone: landed (with the value for L2, if it takes it) or failed.
-- KEYS: value, record (hash), waiters. ARGV: token, state, detail, value ('' for none), how long the value is kept, how
--   long the record is kept, channel, the share of the memory that is left to records. All times are milliseconds.
-- Returns 1, 0 when another token has taken over, 2 when the server is too full for the value: then nothing is written.
local token, state, detail = ARGV[1], ARGV[2], ARGV[3]
local record = redis.call('HMGET', KEYS[2], 'token', 'step', 'total', 'embedding')
if record[1] and record[1] ~= token then
  return 0
end
if ARGV[4] ~= '' then
  if not has_room(ARGV[8]) then
    return 2
  end
  redis.call('SET', KEYS[1], ARGV[4], 'PX', ARGV[5])
end
-- Without a record (Redis forgot it) this makes one, and a whole one: readers count on every field.
local step, total, embedding = record[2] or '0', record[3] or '0', record[4] or ''
redis.call('HSET', KEYS[2], 'token', token, 'state', state, 'step', step, 'total', total, 'embedding', embedding,
  'detail', detail)
redis.call('HDEL', KEYS[2], 'abandoned')
redis.call('PEXPIRE', KEYS[2], ARGV[6])
redis.call('PEXPIRE', KEYS[3], ARGV[6])
redis.call('PUBLISH', ARGV[7], cjson.encode({token, state, step, total, embedding, detail}))
return 1
