-- New job records, but none that there is or that was deleted; the first one may leave a mark, or be answered by one.
-- KEYS: index, unfinished, mark (any of the others when none is left), then a record for each job.
-- ARGV: now ('' for the server's clock), how long jobs are listed, mark's digest ('' for none), how long the mark is
--   kept, whether it asks ('1' or ''), the job it is no answer of, then for each job: id, record, created at (seconds),
--   expires at, unfinished ('1' or ''). Times are milliseconds unless said.
-- Returns {} when all are stored, {digest, job} of an earlier mark that answers, and then nothing is.
local now = time_of(ARGV[1])
if ARGV[3] ~= '' then
  local mark = ARGV[5] == '1' and redis.call('GET', KEYS[3])
  if mark and string.sub(mark, 65) ~= ARGV[6] then
    return {string.sub(mark, 1, 64), string.sub(mark, 65)}
  end
  redis.call('SET', KEYS[3], ARGV[3] .. ARGV[7], 'PX', ARGV[4])
end
for number = 4, #KEYS do
  local at = 7 + (number - 4) * 5
  local id = ARGV[at]
  if redis.call('SET', KEYS[number], ARGV[at + 1], 'NX', 'PXAT', ARGV[at + 3]) then
    redis.call('ZADD', KEYS[1], ARGV[at + 2], id)
    if ARGV[at + 4] == '1' then
      redis.call('ZADD', KEYS[2], string.format('%.0f', now), id)
    end
  end
end
redis.call('ZREMRANGEBYSCORE', KEYS[1], '-inf', string.format('(%.3f', (now - tonumber(ARGV[2])) / 1000))
return {}
