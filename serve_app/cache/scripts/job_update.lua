-- Replace a job record, unless it is gone or was deleted meanwhile.
-- KEYS[1] the record; ARGV[1] the new value. Returns 1 when replaced, 0 when there is no live record.
local old = redis.call('GET', KEYS[1])
if not old or old == 'deleted' then
    return 0
end
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
return 1
