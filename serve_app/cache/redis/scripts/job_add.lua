-- New job records, but none that there is or that was deleted; with some comes a mark that may be answered by another.
-- ARGV: now ('' for the server's clock), most records, most bytes of them, then for each job: id, record, created at,
--   expires at, class ('open', 'ended', 'hit'), and of its mark: name ('' for none), digest, how long it is kept, whether it asks
--   ('1' or ''), the job it is no answer of.
-- Returns for each job: {} when it is stored, was there or was deleted, {digest, job} of the mark that answers it,
--   {'full'} when unfinished jobs leave no room; then nothing of it is stored.
local now = time_of(ARGV[1])
local budget = budget_of(ARGV[2], ARGV[3])
local fresh = 0
for at = 5, #ARGV, 10 do
  fresh = fresh + #ARGV[at] + 2 * #ARGV[at - 1] + OVERHEAD
end
local most = 100 + #ARGV / 5  -- more than come, so that a bound that was made smaller is reached
trim(budget, most, fresh)

budget.used = memory()

-- Returns the earlier job that answers, nothing when none does.
local function answer_of(name, asks, instead_of)
  local earlier = name ~= '' and asks == '1' and mark_of(name, now)
  if earlier and string.sub(earlier, 65) ~= instead_of then
    return {string.sub(earlier, 1, 64), string.sub(earlier, 65)}
  end
end

local function add(at)
  local id, record, created, expires = ARGV[at], ARGV[at + 1], ARGV[at + 2], ARGV[at + 3]
  local class = ({open = OPEN, ended = ENDED, hit = HITS})[ARGV[at + 4]]
  local name, digest, kept = ARGV[at + 5], ARGV[at + 6], ARGV[at + 7]
  local earlier = answer_of(name, ARGV[at + 8], ARGV[at + 9])
  if earlier then
    return earlier
  end
  local there = class_of(id) or is_deleted(id, created)
  if not there and class == OPEN and is_full(budget, #record) then
    return {'full'}
  end
  if no_memory(budget, #record) then
    return {}  -- a hit's id stands for it, and an ended job's record would be the next to go
  end
  if name ~= '' then
    mark(name, digest .. id, now + tonumber(kept), class)
  end
  if not there then
    put(id, record, created, expires, class)
    budget.used = budget.used + #record
    if class == OPEN then
      beat(id, now)
    end
  end
  return {}
end

local answers = {}
for at = 4, #ARGV, 10 do
  answers[#answers + 1] = add(at)
end
trim(budget, most, 0)
trim_marks(budget, most)
return answers
