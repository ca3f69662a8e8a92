-- The heartbeat of one router for all the jobs it follows.
-- KEYS: unfinished. ARGV: now in milliseconds ('' for the server's clock), then ids.
-- Returns the ids that are not among the unfinished: deleted, ended by somebody else, or lost with Redis' data.
local now = time_of(ARGV[1])
local score, missing = string.format('%.0f', now), {}
for number = 2, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[number]) then
    redis.call('ZADD', KEYS[1], score, ARGV[number])
  else
    missing[#missing + 1] = ARGV[number]
  end
end
return missing
