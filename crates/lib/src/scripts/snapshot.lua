-- The state of a page of resources, or of those named; whole and atomic for pools of at most 200. Read-only.
-- Needs only the prelude.
--
-- ARGV: 'items' or 'leases' and a cursor; or 'keys' and at most 200 resources.
-- Returns {'ok', 'items'|'leases'|'' (next part; '' = end), next cursor,
--   resources, item records, expiries, holder records, free scores, quarantine ends, marks, reserved names}; false where
-- there is none. Part 'leases' gives what is leased and no longer declared. Of a shared pool expiries and holder records
-- are false, and at the end come for each resource how many hold it, and of at most 20 of them: id, expiry, holder record.
local _, refused = read_settings()
if refused then return refused end
local WHOLE, PAGE, HOLDERS_SHOWN = 200, 100, 20
local part, cursor = ARGV[1], ARGV[2]
local named = {}
local next_part, next_cursor = '', '0'

local function undeclared(ids)
  if #ids == 0 then return end
  local members, seen = {}, {}
  for _, id in ipairs(ids) do
    local resource = resource_of(id)
    if not seen[resource] then
      seen[resource] = true
      members[#members + 1] = resource
    end
  end
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
if #named == 0 then return { 'ok', next_part, next_cursor, {}, {}, {}, {}, {}, {}, {}, {}, {} } end
local shares = {}
if SHARED then
  for i, resource in ipairs(named) do
    local prefix, held = '[' .. resource .. '\0', {}
    local ids = call('ZRANGEBYLEX', SHARES, prefix, '(' .. resource .. '\1', 'LIMIT', 0, HOLDERS_SHOWN)
    held[1] = #ids < HOLDERS_SHOWN and #ids or call('ZLEXCOUNT', SHARES, prefix, '(' .. resource .. '\1')
    for _, id in ipairs(ids) do
      held[#held + 1] = id
      held[#held + 1] = call('ZSCORE', LEASES, id)
      held[#held + 1] = call('HGET', HOLDERS, id)
    end
    shares[i] = held
  end
end
return { 'ok', next_part, next_cursor, named,
  call('HMGET', ITEMS, unpack(named)), call('ZMSCORE', LEASES, unpack(named)), call('HMGET', HOLDERS, unpack(named)),
  call('ZMSCORE', FREE, unpack(named)), call('ZMSCORE', QUARANTINE, unpack(named)), call('HMGET', MARKS, unpack(named)),
  call('HMGET', RESERVED, unpack(named)), shares }
