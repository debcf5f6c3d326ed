-- The state of a page of resources, or of those named; whole and atomic for pools of at most 200. Read-only.
-- Needs only the prelude.
--
-- ARGV: 'items' or 'leases' and a cursor; or 'keys' and at most 200 resources.
-- Returns {'ok', 'items'|'leases'|'' (next part; '' = end), next cursor,
--   resources, item records, expiries, holder records, free scores, quarantine ends, marks, reserved names}; false where
-- there is none. Part 'leases' gives what is leased and no longer declared.
local refused = unusable(call('HGET', META, 'schema'))
if refused then return refused end
local WHOLE, PAGE = 200, 100
local part, cursor = ARGV[1], ARGV[2]
local named = {}
local next_part, next_cursor = '', '0'

local function undeclared(members)
  if #members == 0 then return end
  local records = call('HMGET', ITEMS, unpack(members))
  for i, resource in ipairs(members) do
    if not records[i] then named[#named + 1] = resource end
  end
end

if part == 'keys' then
  for i = 2, #ARGV do named[i - 1] = ARGV[i] end
elseif part == 'items' and cursor == '0' and call('HLEN', ITEMS) <= WHOLE and call('ZCARD', LEASES) <= WHOLE then
  named = call('HKEYS', ITEMS)
  undeclared(call('ZRANGE', LEASES, 0, -1))
elseif part == 'items' then
  local page = call('HSCAN', ITEMS, cursor, 'COUNT', PAGE)
  for i = 1, #page[2], 2 do named[#named + 1] = page[2][i] end
  next_cursor = page[1]
  next_part = next_cursor == '0' and 'leases' or 'items'
else
  local page, members = call('ZSCAN', LEASES, cursor, 'COUNT', PAGE), {}
  for i = 1, #page[2], 2 do members[#members + 1] = page[2][i] end
  undeclared(members)
  next_cursor = page[1]
  next_part = next_cursor == '0' and '' or 'leases'
end
if #named == 0 then return { 'ok', next_part, next_cursor, {}, {}, {}, {}, {}, {}, {}, {} } end
return { 'ok', next_part, next_cursor, named,
  call('HMGET', ITEMS, unpack(named)), call('ZMSCORE', LEASES, unpack(named)), call('HMGET', HOLDERS, unpack(named)),
  call('ZMSCORE', FREE, unpack(named)), call('ZMSCORE', QUARANTINE, unpack(named)), call('HMGET', MARKS, unpack(named)),
  call('HMGET', RESERVED, unpack(named)) }
