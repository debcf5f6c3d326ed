-- Grants resources. One call serves n requests; those that ask for something special are served first. Needs grant, terms,
-- free_set, offer, settle, reclaim, demand; what grant.lua has served already does not come here.
--
-- ARGV: n times: time to live (ms; 0 = the pool's default, -1 = permanent), binding name ('' = none), holder (JSON),
--   demand (JSON, see demand.lua; '' = one resource, any).
-- Returns {'ok', n results, incarnation, now, 1 if the pool is shared}; results:
--   false (nothing free) | {resource, token, time to live (ms; a claim's, if it is to be permanent), item record} once
--   for each resource, one after the other | {false, 'ttl', maximum} | a refusal of demand.lua.
if not SUSPENDED then
  local ok, failure = pcall(assure)
  -- What grant.lua has granted must reach who asked for it: the others hear of it when they ask again.
  if not ok and next(done) then return { 'ok', results, INCARNATION, NOW, SHARED and 1 or 0 } end
  if not ok then error(failure, 0) end
end
if GATHERING and not SUSPENDED then
  -- Perhaps nobody does any more, and what was kept is for those who wait.
  local before = call('HGET', META, 'gathering')
  for _ = 1, 12 do
    if not waiters().bury() then break end
  end
  if call('HGET', META, 'gathering') ~= before then serve_line(IN_FRONT) end
  GATHERING = (call('HGET', META, 'gathering') or '0') ~= '0'
end

local function serve(i)
  local ttl, answer = time_to_live(ARGV[4 * i - 3])
  local request = answer and { refused = answer } or demand(ARGV[4 * i])
  if request.refused then return request.refused end
  if SUSPENDED then return false end
  request.name, request.holder, request.ttl = ARGV[4 * i - 2], ARGV[4 * i - 1], ttl
  return serve_now(request)
end

-- Those that ask for something special come first.
for _, special in ipairs({ true, false }) do
  for i = 1, n do
    if not done[i] and special == (ARGV[4 * i - 2] ~= '' or ARGV[4 * i] ~= '') then results[i] = serve(i) end
  end
end
return { 'ok', results, INCARNATION, NOW, SHARED and 1 or 0 }
