-- Lets one origin (or every one) let go of items; an item without origins leaves. Needs settle, origins, leave.
--
-- ARGV: origin ('' = every one), ticket ('' = none), '1' to end the leases of what leaves, time (ms; 0 = at once) after
-- which they leave unless they are declared again, then at most 200 resources.
-- Returns {'ok', left, of these draining, of these revoked} or {'superseded'}.
local _, refused = read_settings()
if refused then return refused end
local origin, ticket, revoke, later = ARGV[1], ARGV[2], ARGV[3] == '1', tonumber(ARGV[4])
if superseded(origin, ticket) then return { 'superseded' } end
assure()

local named, seen = {}, {}
for i = 5, #ARGV do
  if not seen[ARGV[i]] then
    seen[ARGV[i]] = true
    named[#named + 1] = ARGV[i]
  end
end
if later > 0 then
  -- What is missing already leaves when that was to be, or sooner if it is kept for less time now.
  for _, resource in ipairs(named) do
    call('ZADD', MISSING, 'LT', format('%.0f', NOW + later), origin .. '\0' .. resource)
  end
  return { 'ok', 0, 0, 0 }
end
-- Nothing may later believe that an origin's items are still as its digest says.
if origin == '' then call('UNLINK', ORIGINS) end
local left, draining, revoked = let_go(origin, named, ticket ~= '', revoke)
return { 'ok', left, draining, revoked }
