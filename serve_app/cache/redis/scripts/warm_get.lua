-- A warm-up's state. KEYS: record (hash), all by when they expire. ARGV: now ('' for the server's clock), id.
-- Returns nil when there is none or it has expired.
local expires = redis.call('ZSCORE', KEYS[2], ARGV[2])
if expires and tonumber(expires) <= time_of(ARGV[1]) then
  return nil
end
return redis.call('HGET', KEYS[1], 'state')
