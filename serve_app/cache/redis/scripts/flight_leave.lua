-- A waiter goes. The last one's going starts the linger, or ends the flight at its holder's next heartbeat.
-- KEYS: record (hash), waiters. ARGV: waiter, at once ('1' or ''), how long a waiter counts after its last look, in
--   milliseconds of the flight's age. Returns 1 when no waiter is left of an active flight.
local record = redis.call('HMGET', KEYS[1], 'state', 'age')
local state, age = record[1], tonumber(record[2]) or 0
redis.call('ZREM', KEYS[2], ARGV[1])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', age - tonumber(ARGV[3])))
if redis.call('ZCARD', KEYS[2]) > 0 or (state ~= 'waiting' and state ~= 'rendering') then
  return 0
end
if ARGV[2] == '1' then
  redis.call('HSET', KEYS[1], 'abandoned', '0')
else
  redis.call('HSETNX', KEYS[1], 'abandoned', 'now')
end
return 1
