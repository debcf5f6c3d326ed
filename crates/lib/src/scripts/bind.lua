-- Ties a name to a resource. Needs settle, reclaim.
--
-- ARGV: name, resource, kind (a, q, d or r; see reclaim), time to live (ms; 0 = until removed).
-- Returns {'ok', 1 (changed) or 0} or {'conflict', the name that reserves the resource}. A call refreshes its binding's
-- time to live; a declaration that has not changed does not, nor does it bring back what ended by its time.
local _, refused = read_settings()
if refused then return refused end
local name, resource, kind, ttl = ARGV[1], ARGV[2], ARGV[3], tonumber(ARGV[4])
local record = format('%s%013.0f', kind, ttl) .. resource
local old = call('HGET', BINDS, name)
local declared = kind == 'd' or kind == 'r'
if declared and old and (old == record or old == string.upper(kind) .. sub(record, 2)) then
  if old ~= record or ttl == 0 or call('ZSCORE', BIND_EXPIRY, name) then return { 'ok', 0 } end
end
assure()
local changed = {}
if required(kind) then
  local holder = call('HGET', RESERVED, resource)
  if holder and holder ~= name then
    local over = call('ZSCORE', BIND_EXPIRY, holder)
    if not over or tonumber(over) > NOW then return { 'conflict', holder } end
    end_binding(holder, call('HGET', BINDS, holder) or record, true)
  end
end
if old then changed[1] = end_binding(name, old, false) end
call('HSET', BINDS, name, record)
if ttl > 0 then call('ZADD', BIND_EXPIRY, format('%.0f', NOW + ttl), name) end
if required(kind) then
  call('HSET', RESERVED, resource, name)
  recount_holds()
  -- Placed once: placed twice, it could be offered to two.
  if changed[1] ~= resource then changed[#changed + 1] = resource end
end
if #changed > 0 then resettle(changed) end
return { 'ok', 1 }
