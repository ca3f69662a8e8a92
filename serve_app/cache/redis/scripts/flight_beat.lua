-- The heartbeat of the holder of a flight: extend the lease, tell progress, hear of cancellation and of urgency.
-- KEYS: record (hash). ARGV: now ('' for the server's clock), token, lease, how long the record outlives it, linger,
--   state, step, total, embedding, channel, for how long the holder has been at work since its last heartbeat, by its own
--   clock. All times are milliseconds.
-- Returns {'held', priority, deadline} | {'lost'} | {'cancelled'}.
local now = time_of(ARGV[1])
local token, lease, linger = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local record = redis.call('HMGET', KEYS[1], 'token', 'state', 'step', 'abandoned', 'priority', 'deadline', 'until', 'age')
local state = record[2]
if record[1] and record[1] ~= token then
  return {'lost'}
end
if state == 'cancelled' then
  return {'cancelled'}
end
if state == 'landed' or state == 'failed' then  -- by this holder; no other process has anything to do there
  return {'held', '', ''}
end
-- No record at all: Redis forgot it. The process at work takes its place again.
local age = (tonumber(record[8]) or 0) + tonumber(ARGV[11])
local abandoned = record[4] == 'now' and math.max(1, age) or tonumber(record[4])  -- the linger begins with this heartbeat
local function tell(new_state)
  redis.call('PUBLISH', ARGV[10], cjson.encode({token, new_state, ARGV[7], ARGV[8], ARGV[9], ''}))
end
if abandoned and (abandoned == 0 or age - abandoned >= linger) then
  redis.call('HSET', KEYS[1], 'state', 'cancelled')
  tell('cancelled')
  return {'cancelled'}
end
redis.call('HSET', KEYS[1], 'token', token, 'state', ARGV[6], 'step', ARGV[7], 'total', ARGV[8],
  'embedding', ARGV[9], 'detail', '', 'age', string.format('%.0f', age),
  'until', string.format('%.0f', math.max(now + lease, (tonumber(record[7]) or 0) + 1)))
if record[4] == 'now' then redis.call('HSET', KEYS[1], 'abandoned', string.format('%.0f', abandoned)) end
redis.call('PEXPIRE', KEYS[1], lease + tonumber(ARGV[4]))
if state ~= ARGV[6] or record[3] ~= ARGV[7] then
  tell(ARGV[6])
end
return {'held', record[5] or '', record[6] or ''}
