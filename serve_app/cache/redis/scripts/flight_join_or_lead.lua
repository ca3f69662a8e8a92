-- One look at a video's flight by one waiter: the value, or the flight to follow, or how it ended, or the lease.
-- KEYS: value, record (hash), waiters (sorted set by last heartbeat), and where there is one the Bloom filter's meta and
--   bits. All times are milliseconds.
-- ARGV: now ('' for the server's clock), waiter, the waiter's own token that it gives up ('' for none), lease,
--   how long waiters are kept, how long the value is kept from now, priority ('' or 0, 1, 2), deadline ('' for none),
--   whether it would lead ('1' or ''), the value's storage name, the version that this waiter's process has seen for the
--   length of a lease ('' for none), the least that a new token may be.
-- A version is the token and the number that each heartbeat makes larger. No process compares that number with a clock, though
--   former releases do: it looks like the end of a lease. `age` is for how long the flight's holders have been at work by
--   their own clocks; the waiters' scores are ages.
-- Returns {'value', bytes, RECORD} ({'value', bytes} without one) | {'joined', RECORD, version} | {'ended', RECORD}
--   | {'leading', token, whether L3 may have it ('1', '0', '' for not known)} | {'idle'}; RECORD is token, state, step, total, embedding, detail.
local now, micros = time_of(ARGV[1])
local waiter, given_up, lease, kept = ARGV[2], ARGV[3], tonumber(ARGV[4]), tonumber(ARGV[5])

local value = redis.call('GET', KEYS[1])
local record = redis.call('HMGET', KEYS[2], 'token', 'state', 'step', 'total', 'embedding', 'detail', 'until', 'age')
local token, state, age = record[1], record[2], record[8] or '0'
local version = (token or '') .. ':' .. (record[7] or '')
if value then
  keep(KEYS[1], ARGV[6])
  redis.pcall('ZREM', KEYS[3], waiter)  -- a server that takes no writes still gives the value
  if not token then
    return {'value', value}
  end
  return {'value', value, token, state, record[3], record[4], record[5], record[6]}
end

local function wait_here()
  redis.call('ZADD', KEYS[3], age, waiter)
  redis.call('PEXPIRE', KEYS[3], kept)
  redis.call('HDEL', KEYS[2], 'abandoned')
  local priority, deadline = tonumber(ARGV[7]), tonumber(ARGV[8])
  if priority and token then  -- the most urgent of all who wait decides: a lower number, an earlier deadline
    local wanted = redis.call('HMGET', KEYS[2], 'priority', 'deadline')
    if priority < (tonumber(wanted[1]) or 9) then redis.call('HSET', KEYS[2], 'priority', ARGV[7]) end
    if deadline and deadline < (tonumber(wanted[2]) or math.huge) then
      redis.call('HSET', KEYS[2], 'deadline', ARGV[8])
    end
  end
end

local in_the_air = state == 'waiting' or state == 'rendering'
if in_the_air and version ~= ARGV[11] and token ~= given_up then
  wait_here()
  return {'joined', token, state, record[3], record[4], record[5], record[6], version}
end
if (state == 'landed' or state == 'failed') and redis.call('ZREM', KEYS[3], waiter) == 1 then
  return {'ended', token, state, record[3], record[4], record[5], record[6]}  -- it waited for this one: told once
end

if ARGV[9] ~= '1' then
  if in_the_air or not token then
    wait_here()  -- but not for a flight that ended before this waiter came: it must not be told of that one
  end
  return {'idle'}
end
-- No process renders it: this waiter leads, under a token larger than any before. Waiters count from the new beginning.
local fresh = math.max(now * 1000 + micros, (tonumber(token) or 0) + 1, tonumber(ARGV[12]))
token = string.format('%.0f', fresh)
age = '0'
for _, other in ipairs(redis.call('ZRANGE', KEYS[3], 0, -1)) do redis.call('ZADD', KEYS[3], age, other) end
redis.call('DEL', KEYS[2])
redis.call('HSET', KEYS[2], 'token', token, 'state', 'waiting', 'step', '0', 'total', '0', 'embedding', '',
  'detail', '', 'until', string.format('%.0f', now + lease), 'age', age)
redis.call('PEXPIRE', KEYS[2], lease + kept)
wait_here()
return {'leading', token, KEYS[4] and may_be_stored(KEYS[4], KEYS[5], ARGV[10]) or ''}
