-- Let a job's image go. KEYS: image, jobs that need it. ARGV: job id. An image that no job needs is deleted.
redis.call('SREM', KEYS[2], ARGV[1])
if redis.call('EXISTS', KEYS[2]) == 0 then
  redis.call('DEL', KEYS[1])
end
