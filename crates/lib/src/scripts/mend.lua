-- Mends one page of one key: what `check` finds there is judged again, and what is left of something that ended is taken
-- away, so that resources are in one place and nobody waits for what is gone. Needs free_set, offer, settle, reclaim.
--
-- ARGV: part ('by-label' | 'wants' | 'waiters' | 'waiting' | 'session-leases', and of a shared pool 'leases' | 'holders' |
-- 'shares'), cursor. Returns {'ok', next cursor, how many entries were mended}.
local _, refused = read_settings()
if refused then return refused end
local part, cursor, PAGE = ARGV[1], ARGV[2], 100
local LINE = 1000 -- how many waiters are counted one by one
assure(true)

local sets = { leases = LEASES, shares = SHARES, ['by-label'] = BY_LABEL, waiters = WAITERS, wants = WANTS,
  ['session-leases'] = SESSION_LEASES }
local hashes = { holders = HOLDERS, waiting = WAITING }
local page = hashes[part] and call('HSCAN', hashes[part], cursor, 'COUNT', PAGE)
  or call('ZSCAN', sets[part], cursor, 'COUNT', PAGE)
local mended = 0
local ended, records = {}, {}

for i = 1, #page[2], 2 do
  local name, broken = page[2][i], false
  if part == 'by-label' then
    local resource = string.match(name, '%z%d+%z([^%z]+)$')
    local score = resource and call('ZSCORE', FREE, resource)
    local record = score and call('HGET', ITEMS, resource)
    broken = true
    for _, member in ipairs(record and label_members(resource, record, tonumber(score)) or {}) do
      if member == name then broken = false end
    end
    if broken then call('ZREM', BY_LABEL, name) end
  elseif part == 'wants' then
    local turn, waiter = string.match(name, '%z(%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d%d)([^%z]+)$')
    local place = waiter and call('ZSCORE', WAITERS, waiter)
    broken = not place or tonumber(place) ~= tonumber(turn)
    if broken then call('ZREM', WANTS, name) end
  elseif part == 'waiters' then
    broken = call('HEXISTS', WAITING, name) == 0 or not call('ZSCORE', ALIVE, name)
    if broken then waiters().drop(name) end
  elseif part == 'waiting' then
    local waiter = string.match(name, '^([^%z]*)')
    broken = call('HEXISTS', WAITING, name) == 1 and not call('ZSCORE', ALIVE, waiter)
    if broken then
      waiters().drop(waiter)
      call('HDEL', WAITING, name)
    end
  elseif part == 'session-leases' then
    local session, id = string.match(name, '^([^%z]+)%z(.+)$')
    broken = not session or call('HEXISTS', HOLDERS, id) == 0
    if broken then call('ZREM', SESSION_LEASES, name) end
  elseif SHARED then
    -- A lease has all three entries, or has ended. One that lacks only its share is held.
    local holder, lease = call('HGET', HOLDERS, name), call('ZSCORE', LEASES, name)
    if not holder or not lease then
      broken = true
      ended[#ended + 1], records[#records + 1] = name, holder or ''
    elseif not call('ZSCORE', SHARES, name) then
      broken = true
      call('ZADD', SHARES, 0, name)
      if call('HEXISTS', ITEMS, resource_of(name)) == 1 then resettle({ resource_of(name) }) end
    end
  end
  if broken then mended = mended + 1 end
end
if #ended > 0 then release(ended, records) end

if part == 'waiters' and page[1] == '0' then
  local wait, gathering = call('ZCARD', WAITERS), tonumber(call('HGET', META, 'gathering') or 0)
  local counted = wait <= LINE and 0 or gathering
  for _, waiter in ipairs(wait <= LINE and call('ZRANGE', WAITERS, 0, -1) or {}) do
    local request = waiters().request(waiter)
    if request and request.n > 1 then counted = counted + 1 end
  end
  local plain, miscounted = call('HGET', META, 'plain'), wait ~= WAIT_COUNT or counted ~= gathering
  call('HSET', META, 'waiters', wait, 'gathering', counted)
  restate()
  if miscounted or call('HGET', META, 'plain') ~= plain then mended = mended + 1 end
end
return { 'ok', page[1], mended }
