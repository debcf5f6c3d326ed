-- The terms of a grant: what the pool allows, and how long it is for. Needs only the prelude.
--
local meta, refused = read_settings('longest', 'default_ttl', 'max_ttl', 'binding_ttl', 'incarnation', 'gathering')
if refused then return refused end
local LONGEST, DEFAULT_TTL, MAX_TTL = tonumber(meta[SETTINGS + 1]), tonumber(meta[SETTINGS + 2]), tonumber(meta[SETTINGS + 3])
local BINDING_TTL, INCARNATION = tonumber(meta[SETTINGS + 4]), meta[SETTINGS + 5]
-- While someone gathers several resources, nobody else is granted what is free.
local GATHERING = (meta[SETTINGS + 6] or '0') ~= '0'

-- The time to live that a request gets (ms; a claim's, if it is to be permanent), or nil and the answer that refuses it.
local function time_to_live(asked)
  local ttl = tonumber(asked)
  if ttl == 0 then ttl = DEFAULT_TTL end
  if MAX_TTL > 0 and (ttl == -1 or ttl > MAX_TTL) then return nil, { false, 'ttl', MAX_TTL } end
  return ttl == -1 and CLAIM or ttl
end
