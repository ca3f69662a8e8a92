-- Write a value. KEYS: value. ARGV: the bytes, how long they are kept ('' for ever, milliseconds), whether only where
--   there is none ('1' or ''), the share of the memory that is left to records.
-- Returns 1 when it was written, 0 when there is one, 2 when the server is too full.
if not has_room(ARGV[4]) then
  return 2
end
local options = {}
if ARGV[2] ~= '' then options = {'PX', ARGV[2]} end
if ARGV[3] == '1' then options[#options + 1] = 'NX' end
return redis.call('SET', KEYS[1], ARGV[1], unpack(options)) and 1 or 0
