-- Change what a charge took, with no question of room, and end its leases; each change once, however often it is asked for.
-- KEYS: the state of each limit; then the mark of the gateway that asks (see charge.lua).
-- ARGV: the lease's name, the time of the charge in microseconds; the trip and the place of a charge whose answer was lost, or 0 and the
--       number of this change; then for each limit: kind, change, what taking one adds.
-- A lost charge is changed if the mark says that it took something; from then on it cannot be carried out any more.
-- Any other is changed if no change of its number or a later one was made: a gateway sends its changes in order, and again from the first
-- one that was not answered. Without a mark the charge itself is forgotten, and what is taken here now is not of it.
local time = redis.call('TIME')
local now = time[1] * 1000000 + time[2]
local day = math.floor(time[1] / 86400)
local charged_us, lost_trip, mark = tonumber(ARGV[2]), tonumber(ARGV[3]), KEYS[#KEYS]
local fence, changed, trip, trip_us, places = string.match(redis.call('GET', mark) or '0:0:0:0:,', '^(%d+):(%d+):(%d+):(%d+):(.*)$')
local is_due

if lost_trip > 0 then
  local place = ',' .. ARGV[4] .. ','
  is_due = tonumber(trip) == lost_trip and string.find(places, place, 1, true)
  if is_due then places = string.gsub(places, place, ',', 1) end
  if lost_trip > tonumber(fence) then fence = ARGV[3] end
  charged_us = tonumber(trip_us)
else
  is_due = tonumber(trip) > 0 and tonumber(ARGV[4]) > tonumber(changed)
  if is_due then changed = ARGV[4] end
end
redis.call('SET', mark, table.concat({ fence, changed, trip, trip_us, places }, ':'), 'EX', 86400)
if not is_due then return 0 end
local charged_on = math.floor(charged_us / 86400000000)

for i = 1, #KEYS - 1 do
  local key, at = KEYS[i], 4 + (i - 1) * 3
  local kind, change, each = ARGV[at + 1], tonumber(ARGV[at + 2]), tonumber(ARGV[at + 3])
  if kind == 'leases' then
    redis.call('ZREM', key, ARGV[1])
  elseif change ~= 0 and kind == 'bucket' then
    local debt = math.max(tonumber(redis.call('GET', key) or 0) - now, 0) + change * each
    if debt > 0 then
      redis.call('SET', key, string.format('%.2f', now + debt), 'PX', math.ceil(debt / 1000) + 1000)
    else
      redis.call('DEL', key)
    end
  elseif change ~= 0 and charged_on == day then
    local on, used = string.match(redis.call('GET', key) or '0:0', '^(%d+):(.+)$')
    local sum = (tonumber(on) == day and tonumber(used) or 0) + change
    redis.call('SET', key, string.format('%d:%.2f', day, math.max(sum, 0)), 'EX', 86400 - time[1] % 86400 + 60)
  end
end
return 1
