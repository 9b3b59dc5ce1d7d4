-- Take the costs of a request from every limit it falls under, if all of them have room; otherwise take nothing.
-- KEYS: the state of each limit; then the mark of the gateway that asks.
-- ARGV: the lease's name, its microseconds, the number of the gateway's trip, the place in it; then for each limit: kind, cost, capacity,
--       what taking one adds (the microseconds in which a bucket regains it), and a floor: what is taken at least, as a gateway knows
--       that counted by itself for a while.
-- Returns 1 or 0, the time in microseconds, and what was taken of each limit before.
-- The mark says which charges of the gateway's last trip took something, so that settle.lua can give back those whose answers were lost:
-- `fence:change:trip:time of its first charge:,place,place,`. Nothing of a trip up to the fence is carried out any more; the number of the
-- gateway's last change is settle.lua's.
local mark, trip = KEYS[#KEYS], tonumber(ARGV[3])
local fence, changed, last_trip = string.match(redis.call('GET', mark) or '0:0:0:', '^(%d+):(%d+):(%d+):')
if trip <= tonumber(fence) then return redis.error_reply('LATE the gateway has given this charge up') end
local count = #KEYS - 1
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local now_text = string.format('%.0f', now)
local day = math.floor(time[1] / 86400)
local allowed = 1
local states = {}

local function state_of(key, kind)
  if kind == 'bucket' then
    return math.max(tonumber(redis.call('GET', key) or 0) - now, 0)
  elseif kind == 'day' then
    local kept = redis.call('GET', key) or '0:0'
    local on, used = string.match(kept, '^(%d+):(.+)$')
    return tonumber(on) == day and tonumber(used) or 0
  end
  redis.call('ZREMRANGEBYSCORE', key, '-inf', now_text)
  return redis.call('ZCARD', key)
end

for i = 1, count do
  local key, at = KEYS[i], 4 + (i - 1) * 5
  local kind, cost, capacity, each = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3]), tonumber(ARGV[at + 4])
  local state = math.max(state_of(key, kind), tonumber(ARGV[at + 5]))
  states[i] = state
  if cost > 0 then
    local grain = kind == 'bucket' and 1 or 0
    if state + cost * each > capacity * each + grain then allowed = 0 end
  end
end

if allowed == 1 then
  local lease, lease_us = ARGV[1], tonumber(ARGV[2])
  if tonumber(last_trip) == trip then
    redis.call('APPEND', mark, ARGV[4] .. ',')
  else
    redis.call('SET', mark, table.concat({ fence, changed, ARGV[3], now_text, ',' .. ARGV[4] .. ',' }, ':'), 'EX', 86400)
  end
  for i = 1, count do
    local key, at = KEYS[i], 4 + (i - 1) * 5
    local kind, cost, each = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 4])
    local after = states[i] + cost * each
    if kind == 'leases' then
      if cost > 0 then
        redis.call('ZADD', key, string.format('%.0f', now + lease_us), lease)
        redis.call('PEXPIRE', key, math.max(math.ceil(lease_us / 1000) + 1000, redis.call('PTTL', key)))
      end
    elseif cost > 0 or tonumber(ARGV[at + 5]) > 0 then
      if kind == 'bucket' then
        redis.call('SET', key, string.format('%.2f', now + after), 'PX', math.ceil(after / 1000) + 1000)
      else
        redis.call('SET', key, string.format('%d:%.2f', day, after), 'EX', 86400 - time[1] % 86400 + 60)
      end
    end
  end
end

local reply = { allowed, now_text }
for i, state in ipairs(states) do reply[i + 2] = string.format('%.2f', state) end
return reply
