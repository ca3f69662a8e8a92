-- The heartbeat of one router for all the jobs it follows.
-- KEYS: unfinished, the steady time. ARGV: now in milliseconds ('' for the server's clock), how long a job may be silent,
--   then ids. Returns the ids that are not among the unfinished: deleted, ended by another process, or lost with Redis' data.
local score, missing = string.format('%.0f', steady_of(ARGV[1], KEYS[2], tonumber(ARGV[2]) + 500)), {}
for number = 3, #ARGV do
  if redis.call('ZSCORE', KEYS[1], ARGV[number]) then
    redis.call('ZADD', KEYS[1], score, ARGV[number])
  else
    missing[#missing + 1] = ARGV[number]
  end
end
return missing
