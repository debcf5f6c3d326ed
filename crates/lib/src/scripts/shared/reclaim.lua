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

-- Reclaims at most `count` (1 to 200) things. Returns three lists and a flag: {resource, holder record, ...} of expired
-- leases, resources back from quarantine, names of ended bindings, and whether there may be more.
local function reclaim(count)
  local room = count
  local expired = call('ZRANGEBYSCORE', LEASES, '-inf', format('%d', NOW - CLOCK_SLACK), 'LIMIT', 0, room)
  local ended = {}
  if #expired > 0 then
    assure()
    local records = call('HMGET', HOLDERS, unpack(expired))
    release(expired, records)
    call('HINCRBY', META, 'expired', #expired)
    for i, resource in ipairs(expired) do
      ended[#ended + 1] = resource
      ended[#ended + 1] = records[i] or ''
    end
    room = room - #expired
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
  return ended, due, unbound, room == 0
end
