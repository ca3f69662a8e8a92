-- A waiter goes. The last one's going starts the linger, or ends the flight at its holder's next heartbeat.
-- KEYS: record (hash), waiters. ARGV: now ('' for the server's clock), waiter, at once ('1' or ''), how long a waiter counts
--   after its last heartbeat. All times are milliseconds. Returns 1 when nobody waits any more for a flight in the air.
local now = time_of(ARGV[1])
redis.call('ZREM', KEYS[2], ARGV[2])
redis.call('ZREMRANGEBYSCORE', KEYS[2], '-inf', string.format('%.0f', now - tonumber(ARGV[4])))
local state = redis.call('HGET', KEYS[1], 'state')
if redis.call('ZCARD', KEYS[2]) > 0 or (state ~= 'waiting' and state ~= 'rendering') then
  return 0
end
if ARGV[3] == '1' then
  redis.call('HSET', KEYS[1], 'abandoned', '0')
else
  redis.call('HSETNX', KEYS[1], 'abandoned', string.format('%.0f', now))
end
return 1
