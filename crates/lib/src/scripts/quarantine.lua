-- Takes a resource out of circulation, now or when its lease ends. Needs settle.
--
-- ARGV: resource, cause, duration (ms; -1 = until released), reason, 1 (a mark of this cause that lasts longer stays as
-- it is) or 0 (it is replaced).
-- Returns {'ok', 1 (in effect) or 0 (when its lease ends)} or {'no-resource'}.
local _, refused = read_settings()
if refused then return refused end
local resource, duration = ARGV[1], tonumber(ARGV[3])
if call('HEXISTS', ITEMS, resource) == 0 then return { 'no-resource' } end
local over = duration == -1 and -1 or NOW + duration
if ARGV[5] == '1' then
  local json = call('HGET', MARKS, resource)
  local present = json and cjson.decode(json)[ARGV[2]]
  if present and (present['until'] == -1 or over ~= -1 and present['until'] > over) then
    return { 'ok', not SHARED and call('ZSCORE', LEASES, resource) and 0 or 1 }
  end
end
assure()
mark(resource, ARGV[2], over, ARGV[4])
call('HINCRBY', META, 'quarantined', 1)
recount_holds()
resettle({ resource })
return { 'ok', not SHARED and call('ZSCORE', LEASES, resource) and 0 or 1 }
