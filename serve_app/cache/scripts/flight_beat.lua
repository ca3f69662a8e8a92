-- The heartbeat of whoever holds a flight: extend the lease, tell progress, hear of cancellation and of urgency.
-- KEYS: record (hash). ARGV: now ('' for the server's clock), token, lease, how long the record outlives it, linger,
--   state, step, total, embedding, channel. All times are milliseconds.
-- Returns {'held', priority, deadline} | {'lost'} | {'cancelled'}.
local now = time_of(ARGV[1])
local token, lease, linger = ARGV[2], tonumber(ARGV[3]), tonumber(ARGV[5])
local record = redis.call('HMGET', KEYS[1], 'token', 'state', 'step', 'abandoned', 'priority', 'deadline')
local state = record[2]
if record[1] and record[1] ~= token then
  return {'lost'}
end
if state == 'cancelled' then
  return {'cancelled'}
end
if state == 'landed' or state == 'failed' then  -- by this holder; what is left to do there is nobody else's
  return {'held', '', ''}
end
-- No record at all: Redis forgot it. Whoever is at work takes its place again.
local abandoned = tonumber(record[4])
local function tell(new_state)
  redis.call('PUBLISH', ARGV[10], cjson.encode({token, new_state, ARGV[7], ARGV[8], ARGV[9], ''}))
end
if abandoned and now - abandoned >= linger then
  redis.call('HSET', KEYS[1], 'state', 'cancelled')
  tell('cancelled')
  return {'cancelled'}
end
redis.call('HSET', KEYS[1], 'token', token, 'state', ARGV[6], 'step', ARGV[7], 'total', ARGV[8],
  'embedding', ARGV[9], 'detail', '', 'until', string.format('%.0f', now + lease))
redis.call('PEXPIRE', KEYS[1], lease + tonumber(ARGV[4]))
if state ~= ARGV[6] or record[3] ~= ARGV[7] then
  tell(ARGV[6])
end
return {'held', record[5] or '', record[6] or ''}
