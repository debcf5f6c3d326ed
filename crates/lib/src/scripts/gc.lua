-- Reclaims what is over. Needs free_set, offer, settle, reclaim, origins, leave.
--
-- ARGV: the most things to reclaim (1 to 200).
-- Returns {'ok', {resource, holder record, ...} of expired leases, resources back from quarantine, ended bindings,
-- 1 if there may be more, resources whose time in the declaration is over}.
local _, refused = read_settings()
if refused then return refused end
local DEAD_FOR = 3600000 -- ms for which a session that is over is remembered
local count = tonumber(ARGV[1])
local expired, due, unbound, more = reclaim(count)
local room = count - #expired / 2 - #due - #unbound

local left = {}
local over = room > 0 and call('ZRANGEBYSCORE', MISSING, '-inf', format('%d', NOW), 'LIMIT', 0, room) or {}
local by_origin = {}
for _, entry in ipairs(over) do
  local origin, resource = string.match(entry, '^([^%z]*)%z(.*)$')
  by_origin[origin] = by_origin[origin] or {}
  table.insert(by_origin[origin], resource)
end
for origin, resources in pairs(by_origin) do
  local before = call('HMGET', ITEMS, unpack(resources))
  let_go(origin, resources, false, false)
  for k, resource in ipairs(resources) do
    if before[k] and call('HEXISTS', ITEMS, resource) == 0 then left[#left + 1] = resource end
  end
end
if #over == room then more = true end

if call('ZCARD', ALIVE) > 0 then
  assure(true)
  if waiters().bury() then more = true end
  serve_line(IN_FRONT)
end
local forgotten = call('ZRANGEBYSCORE', SESSIONS, format('(%.0f', -(NOW - DEAD_FOR)), '(0', 'LIMIT', 0, 16)
if #forgotten > 0 then call('ZREM', SESSIONS, unpack(forgotten)) end
return { 'ok', expired, due, unbound, more and 1 or 0, left }
