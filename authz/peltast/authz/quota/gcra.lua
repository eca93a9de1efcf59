-- gcra.py for all buckets of a key at once: takes back what was not used, then gives as many tokens as every bucket has.
-- KEYS: the buckets. ARGV: tokens wanted; tokens that come back, and when they were taken (seconds, nanoseconds);
-- then for each bucket its interval (nanoseconds) and its burst.
-- Answers: tokens given, nanoseconds until there is one, and the time by Redis's clock (seconds, nanoseconds).
-- A bucket is kept as the time when it will be full, "SECONDS:NANOSECONDS". Differences of times are below 2^53, where
-- doubles are exact; times are not.
local time = redis.call('TIME')
local seconds, nanos = tonumber(time[1]), tonumber(time[2]) * 1000
local wanted, unused = tonumber(ARGV[1]), tonumber(ARGV[2])
local elapsed = math.max(0, (seconds - tonumber(ARGV[3])) * 1e9 + nanos - tonumber(ARGV[4]))

local function ahead_of(key)
  local kept = redis.call('GET', key)
  if not kept then return 0 end
  local s, n = string.match(kept, '^(%d+):(%d+)$')
  return math.max(0, (tonumber(s) - seconds) * 1e9 + tonumber(n) - nanos)
end

local function keep(key, ahead)
  if ahead <= 0 then return redis.call('DEL', key) end
  local n = nanos + ahead % 1e9
  local s = seconds + math.floor(ahead / 1e9) + math.floor(n / 1e9)
  redis.call('SET', key, string.format('%.0f:%.0f', s, n % 1e9), 'PX', string.format('%.0f', math.ceil(ahead / 1e6)))
end

local aheads, given, wait = {}, wanted, 0
for i, key in ipairs(KEYS) do
  local interval, burst = tonumber(ARGV[3 + 2 * i]), tonumber(ARGV[4 + 2 * i])
  local ahead = math.max(0, ahead_of(key) - math.max(0, unused * interval - elapsed))
  local room = math.max(0, burst * interval - ahead)
  aheads[i] = ahead
  given = math.min(given, (room - room % interval) / interval)
  wait = math.max(wait, ahead + interval - burst * interval)
end
for i, key in ipairs(KEYS) do
  keep(key, aheads[i] + given * tonumber(ARGV[3 + 2 * i]))
end
return {string.format('%.0f', given), string.format('%.0f', wait), time[1], string.format('%.0f', nanos)}
