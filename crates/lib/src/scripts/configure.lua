-- Creates a pool or changes its settings; writes nothing when nothing differs. Needs settle.
--
-- ARGV: new incarnation ('' = look only, write nothing), manager ('' = none), known incarnation ('' = none), known longest
-- TTL (ms; -1 = permanent; '' = none), then pairs of settings: field, value.
-- Returns {'ok', created, changed, recovered, incarnation, longest, reorder, hold back} or {'manager', the one found} or
-- {'mode', the one found}.
--
-- hold_until: Redis lost the pool with leases that live holders rely on; until then what is refilled is held back.
local incarnation, manager, known, known_longest = ARGV[1], ARGV[2], ARGV[3], ARGV[4]
local meta = call('HMGET', META, 'schema', 'manager', 'incarnation', 'longest', 'order', 'recovered_from', 'reorder',
  'hold_back', 'hold_until', 'mode')
local created = not meta[1]
if not created then
  local refused = unusable(meta[1])
  if refused then return refused end
  if manager ~= '' and meta[2] and meta[2] ~= '' and meta[2] ~= manager then return { 'manager', meta[2] } end
  for i = 5, #ARGV, 2 do
    if ARGV[i] == 'mode' and ARGV[i + 1] ~= (meta[10] or 'Exclusive') then return { 'mode', meta[10] or 'Exclusive' } end
  end
end

local writes = {}
local function write(field, value)
  writes[#writes + 1] = field
  writes[#writes + 1] = value
end

-- The order in which these are first written is the order in which a small hash is searched: hot ones come first.
if created then
  write('last', '0')
  write('granted', '0')
  write('longest', '0')
  write('schema', SCHEMA)
  write('plain', '0')
  write('holds', '0')
end
local longest = tonumber(created and '0' or meta[4])
local lost = known ~= '' and (created or (meta[3] ~= known and meta[6] ~= known))
local recovered = false
if lost then
  local remembered = tonumber(known_longest)
  if remembered == -1 or (longest ~= -1 and remembered > longest) then longest = remembered end
  write('longest', format('%.0f', longest))
  write('recovered_from', known)
  -- Nobody held anything if nothing was ever granted.
  if remembered ~= 0 then
    recovered = true
    -- Never shorter than a hold that is in force already.
    local hold, before = remembered == -1 and -1 or NOW + remembered + CLOCK_SLACK, tonumber(meta[9] or 0)
    if before == -1 or (hold ~= -1 and before > hold) then hold = before end
    write('hold_until', format('%.0f', hold))
    -- Someone made the pool anew before us: what is there already is held back as well, by calls that follow.
    if not created then
      write('hold_back', '1')
      meta[8] = '1'
    end
  end
end

local fields = {}
for i = 5, #ARGV, 2 do fields[#fields + 1] = ARGV[i] end
local reindex = false
local current = created and {} or call('HMGET', META, unpack(fields))
for k, field in ipairs(fields) do
  if current[k] ~= ARGV[4 + 2 * k] then
    write(field, ARGV[4 + 2 * k])
    if not created and (field == 'order' or field == 'max_holders' or field == 'indexes') and meta[7] ~= '1' then
      write('reorder', '1')
      meta[7] = '1'
    end
    reindex = reindex or field == 'indexes' and not created
  end
end
if manager ~= '' and meta[2] ~= manager then write('manager', manager) end
if created then write('incarnation', incarnation) else incarnation = meta[3] end
if #writes > 0 and ARGV[1] ~= '' then
  local LINE = 200
  read_settings()
  local suspended = SUSPENDED
  call('HSET', META, unpack(writes))
  -- Every resource enters anew, a call later.
  if reindex then call('UNLINK', BY_LABEL) end
  restate()
  if suspended then serve_line(LINE) end
end
return { 'ok', created and 1 or 0, #writes > 0 and 1 or 0, recovered and 1 or 0, incarnation, format('%.0f', longest),
  meta[7] == '1' and 1 or 0, meta[8] == '1' and 1 or 0 }
