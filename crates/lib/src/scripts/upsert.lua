-- Declares items for one origin: adds them, or replaces their facts. Needs settle, origins.
--
-- ARGV: origin, ticket ('' = none), time to live (ms; 0 = none): what is not declared again by then leaves; then n times
-- (at most 200): resource, priority (4 digits), position (10 digits; '' = behind all others), facts (JSON, or '').
-- Returns {'ok', added, updated} or {'superseded'}.
local meta, refused = read_settings('hold_until', 'next_position')
if refused then return refused end
local origin, ticket, ttl = ARGV[1], ARGV[2], tonumber(ARGV[3])
if superseded(origin, ticket) then return { 'superseded' } end

local n = (#ARGV - 3) / 4
local named = {}
for i = 1, n do named[i] = ARGV[4 * i] end
local old = call('HMGET', ITEMS, unpack(named))
local own_json = '["' .. origin .. '"]'
local own = format('%04d', #own_json) .. own_json
local position = tonumber(meta[SETTINGS + 2] or 0)
local added, updated, changed, before, writes, fresh, seen = 0, 0, {}, {}, {}, {}, {}
for i, resource in ipairs(named) do
  local priority, place, facts = ARGV[4 * i + 1], ARGV[4 * i + 2], ARGV[4 * i + 3]
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
      if other == origin then mine = true elseif precedes(other, origin) then better = true end
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
    if not seen[resource] then
      changed[#changed + 1] = resource
      before[#changed] = old[i]
    end
    seen[resource] = new
    -- What comes without a position goes behind all that are there.
    position = math.max(position, math.min(tonumber(sub(new, 5, 14)) + 1, 9999999999))
  end
end
if ttl > 0 or call('ZCARD', MISSING) > 0 then
  assure()
  for _, resource in ipairs(named) do
    if ttl > 0 then
      call('ZADD', MISSING, format('%.0f', NOW + ttl), origin .. '\0' .. resource)
    else
      call('ZREM', MISSING, origin .. '\0' .. resource)
    end
    -- It is back while someone holds it still.
    call('ZREM', MISSING, '\0' .. resource)
  end
  -- Whoever declares the same for good must find a difference.
  if ttl > 0 and ticket == '' then forget_digest(origin) end
end
if #changed == 0 then return { 'ok', 0, 0 } end
assure()
-- Its labels may be others from now on.
if INDEXES then leave_labels(changed, before, call('ZMSCORE', FREE, unpack(changed))) end
for k, resource in ipairs(changed) do writes[2 * k - 1], writes[2 * k] = resource, seen[resource] end
call('HSET', ITEMS, unpack(writes))
if position > tonumber(meta[SETTINGS + 2] or 0) then call('HSET', META, 'next_position', format('%d', position)) end
if ticket == '' then forget_digest(origin) end
-- Redis lost this pool while leases that it no longer knows were held: what comes back waits until they are over.
local hold_until = tonumber(meta[SETTINGS + 1] or 0)
if #fresh > 0 and (hold_until == -1 or hold_until > NOW) then
  for _, resource in ipairs(fresh) do
    mark(resource, 'recovery', hold_until, 'the pool lost its data while leases were held')
  end
  recount_holds()
end
resettle(changed)
return { 'ok', added, updated }
