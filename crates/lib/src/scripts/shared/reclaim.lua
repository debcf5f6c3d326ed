-- What is over: expired leases, quarantines and cooldowns that are due, bindings whose time has come. O(what is over).
-- Needs settle.lua.

-- A binding's record: kind (1 letter), time to live in ms (13 digits, 0 = none), resource. Kinds:
--   a  made by a grant or a call, preferred     d  declared, preferred     D  declared, ended by its time
--   q  made by a call, required                 r  declared, required      R  declared, ended by its time
-- Ended declared ones stay, so that the declaration that is still there does not bring them back.
local function required(kind) return kind == 'q' or kind == 'r' end

-- Ends a binding's effect. keep: leave a declared one behind as ended. Returns the resource it reserved, or nil.
local function end_binding(name, record, keep)
  local kind, resource = sub(record, 1, 1), sub(record, 15)
  assure()
  call('ZREM', BIND_EXPIRY, name)
  if keep and (kind == 'd' or kind == 'r') then
    call('HSET', BINDS, name, string.upper(kind) .. sub(record, 2))
  else
    call('HDEL', BINDS, name)
  end
  if required(kind) and call('HGET', RESERVED, resource) == name then
    call('HDEL', RESERVED, resource)
    recount_holds()
    return resource
  end
end

-- Ends leases that expired or whose session did, up to `room`; their ids and records are added to `ended`.
local function expire(ids, ended)
  assure()
  local records, lapsed = call('HMGET', HOLDERS, unpack(ids)), 0
  for i, id in ipairs(ids) do
    local record = records[i] or ''
    if sub(record, 17, 29) == UNCLAIMED then
      -- An offer that was not claimed: whoever it was for is gone, or asks again. Who was thought dead before may have
      -- come back already, and waits anew.
      local waiter = cjson.decode(sub(record, 30)).waiter
      local offered = call('HGET', WAITING, waiter .. '\0')
      if offered and string.find(offered, sub(record, 1, 16), 1, true) then waiters().drop(waiter) end
      lapsed = lapsed + 1
    else
      ended[#ended + 1] = resource_of(id)
      ended[#ended + 1] = record
    end
  end
  if lapsed > 0 then waiters().retract(lapsed) end
  if #ids > lapsed then call('HINCRBY', META, 'expired', #ids - lapsed) end
  release(ids, records)
end

-- Reclaims at most `count` (1 to 200) things. Returns three lists and a flag: {resource, holder record, ...} of expired
-- leases, resources back from quarantine, names of ended bindings, and whether there may be more.
local function reclaim(count)
  local room = count
  local expired = call('ZRANGEBYSCORE', LEASES, '-inf', format('%d', NOW - CLOCK_SLACK), 'LIMIT', 0, room)
  local ended = {}
  if #expired > 0 then
    expire(expired, ended)
    room = room - #expired
  end
  -- A session that is over ends with its last lease; it is remembered as dead under the negative of its time.
  local over = room > 0 and call('ZRANGEBYSCORE', SESSIONS, '(0', format('%d', NOW - CLOCK_SLACK), 'WITHSCORES',
    'LIMIT', 0, 4) or {}
  for k = 1, #over, 2 do
    local prefix = over[k] .. '\0'
    local entries = room > 0
      and call('ZRANGEBYLEX', SESSION_LEASES, '[' .. prefix, '(' .. over[k] .. '\1', 'LIMIT', 0, room) or {}
    if #entries > 0 then
      assure()
      local ids = {}
      for _, entry in ipairs(entries) do
        local id = sub(entry, #prefix + 1)
        local ok, holder = pcall(cjson.decode, sub(call('HGET', HOLDERS, id) or '', 30))
        if ok and holder.session == over[k] then ids[#ids + 1] = id else call('ZREM', SESSION_LEASES, entry) end
      end
      if #ids > 0 then expire(ids, ended) end
      room = room - #entries
    end
    if room > 0 then
      assure()
      call('ZADD', SESSIONS, format('%.0f', -over[k + 1]), over[k])
      room = room - 1
    end
  end
  local due = {}
  if room > 0 then
    due = call('ZRANGEBYSCORE', QUARANTINE, '-inf', format('%d', NOW), 'LIMIT', 0, room)
    if #due > 0 then resettle(due) end
    room = room - #due
  end
  local unbound = {}
  if room > 0 then
    unbound = call('ZRANGEBYSCORE', BIND_EXPIRY, '-inf', format('%d', NOW), 'LIMIT', 0, room)
    for _, name in ipairs(unbound) do
      local record = call('HGET', BINDS, name)
      if record then
        local resource = end_binding(name, record, true)
        if resource then resettle({ resource }) end
      else
        call('ZREM', BIND_EXPIRY, name)
      end
    end
    room = room - #unbound
  end
  return ended, due, unbound, room <= 0
end
