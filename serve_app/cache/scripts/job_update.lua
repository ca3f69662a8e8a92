-- Replace a job record, unless it was deleted meanwhile.
-- KEYS[1] the record; ARGV[1] the new value. Returns 1 when replaced, 0 when there is no record, -1 when it was deleted.
local old = redis.call('GET', KEYS[1])
if not old then
    return 0
end
if old == 'deleted' then
    return -1
end
redis.call('SET', KEYS[1], ARGV[1], 'KEEPTTL')
return 1
