-- Undoing. Needs only the prelude.

-- Leases of an exclusive pool could not be ended as a whole: they are put back as leases that have ended, for gc to try
-- again, so that no resource is ever in no place. records: what `holders` said of each.
local function put_back(ids, records, failure)
  for i, resource in ipairs(ids) do
    redis.pcall('ZREM', FREE, resource)
    redis.pcall('ZREM', KEYS[6], resource) -- quarantine
    call('HSET', HOLDERS, resource, records[i] or '')
    call('ZADD', LEASES, format('%d', NOW - CLOCK_SLACK), resource)
  end
  error(failure, 0)
end
