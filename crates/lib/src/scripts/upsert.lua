-- Declares items for one origin: adds them, or replaces their facts. Needs settle, origins.
--
-- ARGV: origin, ticket ('' = none), then n times (at most 200): resource, priority (4 digits), position (10 digits; '' = behind all
-- others), facts (JSON, or '').
-- Returns {'ok', added, updated} or {'superseded'}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown', 'hold_until', 'next_position')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local origin, ticket = ARGV[1], ARGV[2]
if superseded(origin, ticket) then return { 'superseded' } end

local n = (#ARGV - 2) / 4
local named = {}
for i = 1, n do named[i] = ARGV[4 * i - 1] end
local old = call('HMGET', ITEMS, unpack(named))
local own_json = '["' .. origin .. '"]'
local own = format('%04d', #own_json) .. own_json
local position = tonumber(meta[6] or 0)
local added, updated, changed, writes, fresh, seen = 0, 0, {}, {}, {}, {}
for i, resource in ipairs(named) do
  local priority, place, facts = ARGV[4 * i], ARGV[4 * i + 1], ARGV[4 * i + 2]
  local record = seen[resource] or old[i]
  local head = place
  if place == '' then
    if record then
      head = sub(record, 5, 14)
    else
      head = format('%010d', position)
    end
  end
  local new = priority .. head .. own .. facts
  if record and record ~= new then
    local origins, mine, better = record_origins(record), false, false
    for _, other in ipairs(origins) do
      if other == origin then mine = true elseif rank(other) < rank(origin) then better = true end
    end
    if not mine then
      origins[#origins + 1] = origin
      table.sort(origins)
    end
    new = with_origins(better and record or new, origins)
  end
  if new ~= record then
    if record then
      updated = updated + 1
    else
      added = added + 1
      fresh[#fresh + 1] = resource
    end
    if not seen[resource] then changed[#changed + 1] = resource end
    seen[resource] = new
    -- What comes without a position goes behind all that are there.
    position = math.max(position, math.min(tonumber(sub(new, 5, 14)) + 1, 9999999999))
  end
end
if #changed == 0 then return { 'ok', 0, 0 } end
assure()
for k, resource in ipairs(changed) do writes[2 * k - 1], writes[2 * k] = resource, seen[resource] end
call('HSET', ITEMS, unpack(writes))
if position > tonumber(meta[6] or 0) then call('HSET', META, 'next_position', format('%d', position)) end
if ticket == '' then forget_digest(origin) end
-- Redis lost this pool while leases that it no longer knows were held: what comes back waits until they are over.
local hold = tonumber(meta[5] or 0)
if #fresh > 0 and (hold == -1 or hold > NOW) then
  for _, resource in ipairs(fresh) do mark(resource, 'recovery', hold, 'the pool lost its data while leases were held') end
  recount_holds()
end
resettle(changed)
return { 'ok', added, updated }
