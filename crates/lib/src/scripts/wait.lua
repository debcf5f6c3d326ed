-- Waits in line, or asks how far it has come: registers who is not registered, claims what was offered, keeps alive who
-- waits. Asked again, it answers the same. Needs terms, free_set, offer, settle, reclaim, demand; the polls that poll.lua has
-- answered already do not come here.
--
-- ARGV: 1 'wait' | 'last' (takes what was offered, else leaves) | 'leave' (leaves, and gives back what it was offered or
-- has been granted), 2 waiter, 3 how many places before later ones its priority puts it, 4 channel on which it hears that
-- something was offered, 5 its life (ms) unless it asks again, then as for malloc: 6 time to live, 7 binding name,
-- 8 holder (JSON), 9 demand (JSON).
-- Returns {'ok', one result as of malloc, incarnation, now, 1 if the pool is shared, how many are before it}; false: it
-- waits, or has left.
-- {false, 'lost'} in place of a result: what it had been granted has ended since; only who asks again after a lost reply sees it.
local mode, waiter = ARGV[1], ARGV[2]
-- A number that keeps every turn positive, in 16 digits.
local MIDDLE = 1000000000000
assure(true)

local function answer(result, place)
  return { 'ok', result, INCARNATION, NOW, SHARED and 1 or 0, place or 0 }
end

-- What was offered or has been claimed: ids and tokens, or nil.
local function offered()
  local json = call('HGET', WAITING, waiter .. '\0')
  return json and cjson.decode(json)
end

-- Ends what of it is still this waiter's.
local function give_back(list)
  local ids, records, unclaimed = {}, {}, 0
  for k = 1, #list, 2 do
    local record = call('HGET', HOLDERS, list[k])
    if record and sub(record, 1, 16) == list[k + 1] then
      ids[#ids + 1], records[#records + 1] = list[k], record
      if sub(record, 17, 29) == UNCLAIMED then unclaimed = unclaimed + 1 end
    end
  end
  if unclaimed > 0 then waiters().retract(unclaimed) end
  if #ids > 0 then release(ids, records) end
end

local function leave(list)
  local gathered = (waiters().request(waiter) or { n = 1 }).n > 1
    or call('ZSCORE', WAITERS, waiter) and (call('HGET', META, 'gathering') or '0') ~= '0'
  waiters().drop(waiter)
  if list then give_back(list) end
  if gathered then serve_line(IN_FRONT) end
end

-- Turns an offer into leases, which begin now. Those that it was turned into before, as the reply was lost, are renewed.
-- nil when part of it is gone.
local function claim(list, request)
  local granted, claimed = {}, false
  for k = 1, #list, 2 do
    local id = list[k]
    local holder, record = call('HGET', HOLDERS, id), call('HGET', ITEMS, resource_of(id))
    if not holder or sub(holder, 1, 16) ~= list[k + 1] or not record then return nil end
    if sub(holder, 17, 29) ~= UNCLAIMED then
      claimed = true
      if tonumber(call('ZSCORE', LEASES, id) or 0) <= NOW then return nil end
    elseif HOLDS then
      -- Taken out of circulation since it was offered.
      local marks = call('HGET', MARKS, resource_of(id))
      if marks and marks_in_force(marks) then return nil end
    end
    for _, part in ipairs({ resource_of(id), tonumber(list[k + 1]), request.ttl, record }) do
      granted[#granted + 1] = part
    end
  end
  if LONGEST ~= -1 and request.ttl > LONGEST then call('HSET', META, 'longest', format('%d', request.ttl)) end
  for k = 1, #list, 2 do
    local id = list[k]
    if not claimed then call('HSET', HOLDERS, id, list[k + 1] .. format('%013d', NOW) .. request.holder) end
    -- Never sooner: a copy of the call that comes late must not cut short what has been renewed since.
    call('ZADD', LEASES, 'GT', request.session and '+inf' or format('%d', NOW + request.ttl), id)
    if request.session then call('ZADD', SESSION_LEASES, 0, request.session .. '\0' .. id) end
  end
  if claimed then return granted end
  waiters().depart(waiter, request)
  if request.name ~= '' then
    local resource, in_the_way = bound(request.name), nil
    if resource and not SHARED and resource ~= granted[1] then in_the_way = call('HGET', HOLDERS, resource) end
    rebind(request.name, granted[1], in_the_way)
  end
  return granted
end

local request = waiters().request(waiter)
local list = offered()
if mode == 'leave' then
  leave(list)
  return answer(false)
end

local wanted = demand(ARGV[9])
local ttl, refusal = time_to_live(ARGV[6])
-- A pool that is being filled again is waited for by who is in line already.
if not (request and wanted.refused and wanted.refused[2] == 'count') then refusal = refusal or wanted.refused end
if refusal then
  leave(list)
  return answer(refusal)
end

-- Answers with what was offered, if that still stands; else it waits on, in its place.
local function claimed()
  list = offered()
  if not list then return nil end
  request.ttl = ttl
  local granted = claim(list, request)
  if granted then
    -- Remembered for longer than a client tries to hear of it.
    call('ZADD', ALIVE, format('%d', NOW + 3 * tonumber(ARGV[5])), waiter)
    if (call('HGET', META, 'gathering') or '0') ~= '0' then serve_line(IN_FRONT) end
    return granted
  end
  call('HDEL', WAITING, waiter .. '\0')
  local waits = call('ZSCORE', WAITERS, waiter)
  if not waits then
    waiters().drop(waiter)
    give_back(list)
    return { false, 'lost' }
  end
  waiters().want(waiter, request)
  give_back(list)
  return nil
end

if request and list then
  -- It is alive, whatever comes of this.
  call('ZADD', ALIVE, format('%d', NOW + tonumber(ARGV[5])), waiter)
  local granted = claimed()
  if granted then return answer(granted) end
end
if mode == 'last' then
  leave(offered())
  return answer(false)
end

call('ZADD', ALIVE, format('%d', NOW + tonumber(ARGV[5])), waiter)
local name = ARGV[7]
local resource, only
if name ~= '' then resource, only = bound(name) end
local classes, reserved = {}, only and '@' .. name .. '\0' or ''
if wanted.n > 1 then
  classes[1] = '#\0'
elseif wanted.selectors then
  for _, selector in ipairs(wanted.selectors) do
    for k = 2, #selector do classes[#classes + 1] = reserved .. '=' .. selector[k] end
  end
else
  classes[1] = reserved .. '*\0'
end
local is_new = not request
if request and request.classes[1] ~= classes[1] then
  -- Its name was bound or unbound since.
  waiters().sated(waiter, request)
  request.classes = classes
  call('HSET', WAITING, waiter, cjson.encode(request))
  waiters().want(waiter, request)
elseif not request then
  request = {
    n = wanted.n, selectors = wanted.selectors, session = wanted.session, name = name, holder = ARGV[8], ttl = ttl,
    channel = ARGV[4], places = tonumber(ARGV[3]), since = NOW, classes = classes,
  }
  waiters().enter(waiter, request, MIDDLE + call('HINCRBY', META, 'arrivals', 1) - request.places)
end

-- Whether something is there for it already, or for those before it.
local function look_around()
  if resource then
    local ripe = ripen(resource)
    if offered() then return end
    local record = ripe and at_hand(request, resource)
    if record then resettle({ resource }) end
  end
  if only or offered() then return end
  offer_free(waiter, request, is_new or (call('ZRANK', WAITERS, waiter) or 0) < IN_FRONT)
end

waiters().bury()
if not SUSPENDED then
  look_around()
  if not offered() then
    local ended, due, unbound = reclaim(16)
    if #ended + #due + #unbound > 0 and not offered() then look_around() end
  end
end
local granted = claimed()
if granted then return answer(granted) end
return answer(false, call('ZRANK', WAITERS, waiter) or 0)
