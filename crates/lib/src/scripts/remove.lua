-- Lets one origin (or every one) let go of items; an item without origins leaves. Needs settle, origins.
--
-- ARGV: origin ('' = every one), ticket ('' = none), '1' to end the leases of what leaves, then at most 200 resources.
-- Returns {'ok', left, of these draining, of these revoked} or {'superseded'}.
local meta = call('HMGET', META, 'schema', 'holds', 'order', 'cooldown')
local refused = read_settings(meta[1], meta[2], meta[3], meta[4])
if refused then return refused end
local origin, ticket, revoke = ARGV[1], ARGV[2], ARGV[3] == '1'
if superseded(origin, ticket) then return { 'superseded' } end
assure()

-- Nothing may later believe that an origin's items are still as its digest says.
if origin == '' then call('UNLINK', ORIGINS) end
local named, seen = {}, {}
for i = 4, #ARGV do
  if not seen[ARGV[i]] then
    seen[ARGV[i]] = true
    named[#named + 1] = ARGV[i]
  end
end
local old = call('HMGET', ITEMS, unpack(named))
local leaving, kept, stale = {}, {}, {}
for i, resource in ipairs(named) do
  if old[i] then
    local left, mine = {}, origin == ''
    if origin ~= '' then
      for _, other in ipairs(record_origins(old[i])) do
        if other == origin then mine = true else left[#left + 1] = other end
      end
    end
    if mine and #left == 0 then
      leaving[#leaving + 1] = resource
    elseif mine then
      kept[#kept + 1] = resource
      kept[#kept + 1] = with_origins(old[i], left)
      for _, other in ipairs(left) do stale[other] = true end
    end
  end
end
if #kept > 0 then
  call('HSET', ITEMS, unpack(kept))
  -- Who still declares it brings its own facts at the next synchronisation.
  for other in pairs(stale) do forget_digest(other) end
end
if ticket == '' and origin ~= '' and #kept + #leaving > 0 then forget_digest(origin) end
if #leaving == 0 then return { 'ok', 0, 0, 0 } end
local draining, revoked, records = {}, {}, {}
local expiries = call('ZMSCORE', LEASES, unpack(leaving))
for i, resource in ipairs(leaving) do
  if expiries[i] then
    if revoke then revoked[#revoked + 1] = resource else draining[#draining + 1] = resource end
  end
end
call('HDEL', ITEMS, unpack(leaving))
call('ZREM', FREE, unpack(leaving))
call('ZREM', QUARANTINE, unpack(leaving))
if HOLDS then
  call('HDEL', MARKS, unpack(leaving))
  recount_holds()
end
if #revoked > 0 then
  records = call('HMGET', HOLDERS, unpack(revoked))
  for i = 1, #revoked do records[i] = records[i] or '' end
  release(revoked, records)
  call('HINCRBY', META, 'revoked', #revoked)
end
return { 'ok', #leaving, #draining, #revoked }
