-- Looks for broken invariants on one page of one key; each resource is judged atomically. Read-only. Needs settle.
--
-- ARGV: part, as a key's name ('items', 'by-label', ...), cursor.
-- Returns {'ok', next cursor, {invariant, subject, ...}}.
local _, refused = read_settings()
if refused then return refused end
local part, cursor, PAGE = ARGV[1], ARGV[2], 100
local found = {}
local function broken(invariant, subject)
  found[#found + 1] = invariant
  found[#found + 1] = subject
end

local hashes = { items = ITEMS, holders = HOLDERS, marks = MARKS, reserved = RESERVED, binds = BINDS, waiting = WAITING }
local sets = { free = FREE, leases = LEASES, quarantine = QUARANTINE, ['bind-expiry'] = BIND_EXPIRY, shares = SHARES,
  ['by-label'] = BY_LABEL, waiters = WAITERS, wants = WANTS, ['session-leases'] = SESSION_LEASES }
local page = hashes[part] and call('HSCAN', hashes[part], cursor, 'COUNT', PAGE)
  or call('ZSCAN', sets[part], cursor, 'COUNT', PAGE)
if part == 'items' and cursor == '0' then
  local holds = call('HLEN', MARKS) + call('HLEN', RESERVED)
  if (holds > 0) ~= HOLDS then broken('holds-miscounted', tostring(holds)) end
  local wait = call('ZCARD', WAITERS)
  local gathering = tonumber(call('HGET', META, 'gathering') or 0)
  if wait ~= WAIT_COUNT or gathering < 0 or gathering > wait then broken('waiters-miscounted', tostring(wait)) end
  local plain = not SHARED and not INDEXES and not SUSPENDED and wait == 0 and ORDER ~= 'Random'
  if plain ~= (call('HGET', META, 'plain') == '1') then broken('plain-misstated', tostring(plain)) end
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
    local full = SHARED and room_of(name) <= 0
    local places = (free and 1 or 0) + (lease and 1 or 0) + (held and 1 or 0)
    if places > 1 then broken('in-two-places', name) end
    if places == 0 and not is_reserved(name) and not full then broken('in-no-place', name) end
    if free and full then broken('free-though-full', name) end
    if free and is_reserved(name) then broken('free-though-reserved', name) end
    if in_force(name) and not lease and not held then broken('mark-not-in-force', name) end
    if free and math.floor(tonumber(free) / BAND) ~= 1000 - tonumber(sub(value, 1, 4)) then broken('wrong-priority', name) end
    if #record_origins(value) == 0 then broken('item-without-origin', name) end
    for _, member in ipairs(free and label_members(name, value, tonumber(free)) or {}) do
      if not call('ZSCORE', BY_LABEL, member) then broken('free-without-label', name) end
    end
  elseif part == 'free' or part == 'quarantine' then
    if call('HEXISTS', ITEMS, name) == 0 then broken(part .. '-but-not-declared', name) end
    if part == 'quarantine' and call('HEXISTS', MARKS, name) == 0 then broken('quarantined-without-mark', name) end
  elseif part == 'leases' then
    if call('HEXISTS', HOLDERS, name) == 0 then broken('lease-without-holder', name) end
    if SHARED and not call('ZSCORE', SHARES, name) then broken('lease-without-share', name) end
  elseif part == 'holders' then
    if not call('ZSCORE', LEASES, name) then broken('holder-without-lease', name) end
    if value ~= '' and tonumber(sub(value, 1, 16)) > LAST then broken('token-above-last', name) end
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
  elseif part == 'shares' then
    if not call('ZSCORE', LEASES, name) then broken('share-without-lease', name) end
  elseif part == 'by-label' then
    local resource = string.match(name, '%z%d+%z([^%z]+)$')
    local free = resource and call('ZSCORE', FREE, resource)
    local record, right = free and call('HGET', ITEMS, resource), false
    for _, member in ipairs(record and label_members(resource, record, tonumber(free)) or {}) do
      right = right or member == name
    end
    if not right then broken('label-but-not-free', resource or name) end
  elseif part == 'waiters' then
    if call('HEXISTS', WAITING, name) == 0 then broken('waiter-without-request', name) end
    if not call('ZSCORE', ALIVE, name) then broken('waiter-without-life', name) end
  elseif part == 'wants' then
    local turn, waiter = string.match(name, '%z(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)([^%z]+)$')
    local place = waiter and call('ZSCORE', WAITERS, waiter)
    if not place or tonumber(place) ~= tonumber(turn) then broken('want-without-waiter', waiter or name) end
  elseif part == 'waiting' then
    local waiter = string.match(name, '^([^%z]*)')
    if not call('ZSCORE', ALIVE, waiter) then broken('request-without-life', waiter) end
  elseif part == 'session-leases' then
    local session, id = string.match(name, '^([^%z]+)%z(.+)$')
    if not session or call('HEXISTS', HOLDERS, id) == 0 then broken('session-lease-without-lease', name) end
  elseif part == 'bind-expiry' then
    if call('HEXISTS', BINDS, name) == 0 then broken('expiry-without-binding', name) end
  end
end
return { 'ok', page[1], found }
