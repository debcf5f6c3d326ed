-- Prelude of every pool script: the keys that granting and giving back need, Redis' time, constants. What most others need
-- beside is in base.lua. Read-only; everything here is O(1).
--
-- KEYS are the same for every script (shapes in keys.rs).
-- Every reply is an array whose first element is a status; a pool that is missing or too new answers before anything
-- is written: {'unknown'} or {'schema', version}.
local META, ITEMS, FREE, LEASES, HOLDERS = KEYS[1], KEYS[2], KEYS[3], KEYS[4], KEYS[5]
local call, sub, format = redis.call, string.sub, string.format

-- TIME moves within a script on Redis 7.0: it is read once, here.
local clock = redis.call('TIME')
local NOW_US = clock[1] * 1000000 + clock[2]
local NOW = math.floor(NOW_US / 1000)

local SCHEMA = '1'
-- A lease is reclaimed this much (ms) after its expiry, so that a clock that jumped ahead grants nobody early.
local CLOCK_SLACK = 2000
-- One priority's share of the scores in `free`: 2^42 ms reach to the year 2109, 1001 of them fit a double exactly.
local BAND = 4398046511104
-- A permanent grant begins as a claim of so many ms, to be confirmed by a renewal.
local CLAIM = 10000
-- Where a holder's record has the time of its grant, an offer that nobody has claimed yet has this.
local UNCLAIMED = '0000000000000'

-- Refuses while nothing is written what the user may not do, where it could not be undone later.
local function permit(command)
  if redis.acl_check_cmd(command, META, '0', '0') then return end
  error(redis.error_reply('NOPERM this user may not run ' .. command .. ' on the pool, which this call needs'), 0)
end
