-- Records by creation, from a place on. ARGV: now ('' for the server's clock), how many, 'asc' or 'desc', first rank,
--   the id to come after ('' for none), when that was created ('' for not known; then it must be listed or deleted).
-- Returns {next rank, ids and records ...}, the rank -1 at the end of the list; {} when the id is unknown.
-- No more than ten times as many entries are looked at as were asked for: some may have expired.
local now = time_of(ARGV[1])
local wanted, descending, rank = tonumber(ARGV[2]), ARGV[3] == 'desc', tonumber(ARGV[4])
local id, created = ARGV[5], ARGV[6]

-- Returns the rank of the first entry after a place where there is none, in the order that was asked for.
local function rank_after(score)
  local before = redis.call('ZCOUNT', LISTED, '-inf', '(' .. score)
  for _, other in ipairs(redis.call('ZRANGE', LISTED, score, score, 'BYSCORE', 'LIMIT', 0, 1000)) do
    if other < id then before = before + 1 end
  end
  return descending and redis.call('ZCARD', LISTED) - before or before
end

if id ~= '' then
  local found = redis.call(descending and 'ZREVRANK' or 'ZRANK', LISTED, id)
  if found then
    rank = found + 1
  else
    local score = redis.call('ZSCORE', DELETED, id) or created
    if score == '' then
      return {}
    end
    rank = rank_after(score)
  end
end

local answer, looked = {0}, 0
while #answer < 1 + 2 * wanted and looked < 10 * wanted do
  local last = rank + wanted - 1
  local ids = descending and redis.call('ZRANGE', LISTED, rank, last, 'REV') or redis.call('ZRANGE', LISTED, rank, last)
  for _, listed in ipairs(ids) do
    if #answer < 1 + 2 * wanted then
      local class, expires = class_of(listed)
      if class and now < expires then
        answer[#answer + 1] = listed
        answer[#answer + 1] = redis.call('HGET', RECORDS, listed)
      end
      rank = rank + 1
    end
  end
  looked = looked + wanted
  if #ids < wanted then
    rank = -1
    break
  end
end
answer[1] = rank
return answer
