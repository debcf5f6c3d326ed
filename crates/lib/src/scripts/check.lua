-- Looks for broken invariants on one page of one key; each resource is judged atomically. Read-only. Needs settle.
--
-- ARGV: part ('items', 'free', 'leases', 'holders', 'quarantine', 'marks', 'reserved', 'binds', 'bind-expiry'), cursor.
-- Returns {'ok', next cursor, {invariant, subject, ...}}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown', 'last')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local part, cursor, PAGE = ARGV[1], ARGV[2], 100
local found = {}
local function broken(invariant, subject)
  found[#found + 1] = invariant
  found[#found + 1] = subject
end

local hashes = { items = ITEMS, holders = HOLDERS, marks = MARKS, reserved = RESERVED, binds = BINDS }
local sets = { free = FREE, leases = LEASES, quarantine = QUARANTINE, ['bind-expiry'] = BIND_EXPIRY }
local page = hashes[part] and call('HSCAN', hashes[part], cursor, 'COUNT', PAGE)
  or call('ZSCAN', sets[part], cursor, 'COUNT', PAGE)
if part == 'items' and cursor == '0' then
  local holds = call('HLEN', MARKS) + call('HLEN', RESERVED)
  if (holds > 0) ~= HOLDS then broken('holds-miscounted', tostring(holds)) end
end

local function is_reserved(resource)
  return call('HEXISTS', RESERVED, resource) == 1
end

local function in_force(resource)
  local json = call('HGET', MARKS, resource)
  return json and (marks_in_force(json)) or nil
end

for i = 1, #page[2], 2 do
  local name, value = page[2][i], page[2][i + 1]
  if part == 'items' then
    local free, lease = call('ZSCORE', FREE, name), call('ZSCORE', LEASES, name)
    local held = call('ZSCORE', QUARANTINE, name)
    local places = (free and 1 or 0) + (lease and 1 or 0) + (held and 1 or 0)
    if places > 1 then broken('in-two-places', name) end
    if places == 0 and not is_reserved(name) then broken('in-no-place', name) end
    if free and is_reserved(name) then broken('free-though-reserved', name) end
    if in_force(name) and not lease and not held then broken('mark-not-in-force', name) end
    if free and math.floor(tonumber(free) / BAND) ~= 1000 - tonumber(sub(value, 1, 4)) then broken('wrong-priority', name) end
    if #record_origins(value) == 0 then broken('item-without-origin', name) end
  elseif part == 'free' or part == 'quarantine' then
    if call('HEXISTS', ITEMS, name) == 0 then broken(part .. '-but-not-declared', name) end
    if part == 'quarantine' and call('HEXISTS', MARKS, name) == 0 then broken('quarantined-without-mark', name) end
  elseif part == 'leases' then
    if call('HEXISTS', HOLDERS, name) == 0 then broken('lease-without-holder', name) end
  elseif part == 'holders' then
    if not call('ZSCORE', LEASES, name) then broken('holder-without-lease', name) end
    if value ~= '' and tonumber(sub(value, 1, 16)) > tonumber(meta[5]) then broken('token-above-last', name) end
  elseif part == 'marks' then
    if call('HEXISTS', ITEMS, name) == 0 then broken('mark-but-not-declared', name) end
  elseif part == 'reserved' then
    local record = call('HGET', BINDS, value)
    if not record or not required(sub(record, 1, 1)) or sub(record, 15) ~= name then
      broken('reservation-without-binding', name)
    end
  elseif part == 'binds' then
    if required(sub(value, 1, 1)) and call('HGET', RESERVED, sub(value, 15)) ~= name then
      broken('binding-without-reservation', name)
    end
  elseif part == 'bind-expiry' then
    if call('HEXISTS', BINDS, name) == 0 then broken('expiry-without-binding', name) end
  end
end
return { 'ok', page[1], found }
