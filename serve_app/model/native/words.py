"""The words of the demo's world, for telling what of a prompt the model understands; English and Chinese.

`training.captions` writes with these words, but imports torch, which a router does not; so they stand here as plain
data, and a test fails when the two are not in step. The values are lists between commas.
"""

from __future__ import annotations

from collections.abc import Mapping

ATTRIBUTES: Mapping[str, Mapping[str, str]] = {
    "shape": {
        "circle": "circle, disc, ball, round shape, 圆形, 圆, 圆球, 圆盘",
        "square": "square, box, block, square shape, 正方形, 方块, 方形",
        "triangle": "triangle, triangular shape, 三角形, 三角",
        "star": "star, five-pointed star, star shape, 五角星, 星星, 星形",
        "heart": "heart, heart shape, love heart, 爱心, 心形, 心",
        "cross": "cross, plus sign, plus, cross shape, 十字, 十字形, 加号",
    },
    "color": {
        "red": "red, crimson, scarlet, 红色, 大红色, 鲜红色",
        "orange": "orange, tangerine, bright orange, 橙色, 橘色, 橘黄色",
        "yellow": "yellow, lemon yellow, bright yellow, 黄色, 明黄色, 柠檬黄",
        "green": "green, emerald, emerald green, 绿色, 翠绿色",
        "cyan": "cyan, teal, turquoise, aqua, 青色, 青绿色",
        "blue": "blue, cobalt, royal blue, 蓝色, 宝蓝色",
        "purple": "purple, violet, deep purple, 紫色, 深紫色",
        "pink": "pink, rose, hot pink, 粉色, 粉红色",
    },
    "size": {
        "small": "small, little, tiny, mini, 小, 小小的, 迷你",
        "large": "large, big, huge, giant, 大, 大大的, 巨大的",
    },
    "background": {
        "white": "white, plain white, pure white, 白色背景, 白底, 纯白背景",
        "black": "black, pitch black, pure black, 黑色背景, 黑底, 纯黑背景",
        "gray": "gray, grey, neutral gray, 灰色背景, 灰底",
        "navy": "navy, navy blue, dark blue, midnight blue, 深蓝色背景, 藏青色背景, 海军蓝背景",
        "sky": "sky, sky blue, light blue, pale blue, 天蓝色背景, 天空背景, 浅蓝色背景",
        "sand": "sand, sandy, beige, sand colored, 沙色背景, 沙滩背景, 米色背景",
    },
    "motion": {
        "left": (
            "moves left, moving left, moves to the left, moving to the left, slides left, "
            "sliding left, glides to the left, gliding to the left, drifts leftward, drifting "
            "leftward, goes left, going left, travels from right to left, traveling from "
            "right to left, 向左移动, 往左滑动, 从右向左移动, 左移, 往左走"
        ),
        "right": (
            "moves right, moving right, moves to the right, moving to the right, slides "
            "right, sliding right, glides to the right, gliding to the right, drifts "
            "rightward, drifting rightward, goes right, going right, travels from left to "
            "right, traveling from left to right, 向右移动, 往右滑动, 从左向右移动, 右移, 往右走"
        ),
        "up": (
            "moves up, moving up, moves upward, moving upward, rises, rising, floats up, "
            "floating up, goes up, going up, climbs to the top, climbing to the top, travels "
            "from bottom to top, traveling from bottom to top, 向上移动, 往上升, 上升, 从下往上移动, 上移"
        ),
        "down": (
            "moves down, moving down, moves downward, moving downward, falls, falling, sinks, "
            "sinking, goes down, going down, drops to the bottom, dropping to the bottom, "
            "travels from top to bottom, traveling from top to bottom, 向下移动, 往下掉, 下降, 从上往下移动, "
            "下落"
        ),
        "grow": (
            "grows, growing, gets bigger, getting bigger, becomes larger, becoming larger, "
            "expands, expanding, increases in size, increasing in size, swells, swelling, 变大, "
            "逐渐变大, 放大, 越来越大, 膨胀"
        ),
        "shrink": (
            "shrinks, shrinking, gets smaller, getting smaller, becomes smaller, becoming "
            "smaller, contracts, contracting, decreases in size, decreasing in size, "
            "dwindles, dwindling, 变小, 逐渐变小, 缩小, 越来越小, 收缩"
        ),
        "rotate": (
            "rotates, rotating, spins, spinning, turns around, turning around, spins in "
            "place, spinning in place, rotates clockwise, rotating clockwise, whirls, "
            "whirling, 旋转, 转动, 原地旋转, 顺时针旋转, 打转"
        ),
        "bounce": (
            "bounces, bouncing, hops, hopping, jumps up and down, jumping up and down, "
            "bounces up and down, bouncing up and down, jumps, jumping, bobs up and down, "
            "bobbing up and down, 弹跳, 跳动, 上下跳, 蹦跳, 跳来跳去"
        ),
        "still": (
            "stays still, staying still, stands still, standing still, does not move, not "
            "moving, remains motionless, remaining motionless, rests, resting, stays in "
            "place, staying in place, 静止, 静止不动, 保持不动, 停在原地, 一动不动"
        ),
    },
}
"""Of each attribute's values, the phrases that captions name them by."""

FILLERS = (
    "a, an, the, one, is, it, that, which, there, here, we, see, can, how, look, at, imagine, and, as, of, in, on, "
    "in front of, over, against, with, size, to, from, shape, object, thing, slowly, quickly, gently, smoothly, "
    "steadily, constantly, 一个, 的, 在, 上, 前, 里, 中, 有, 它, 正在, 请看, 后面是, 不停地, 出现, 画面, 图形, 东西, "
    "慢慢, 快速, 不断, 一直, 缓缓, 持续, 高清, 电影感, 画质清晰, 简单动画, 卡通风格, 可爱, 明亮, 没有文字, 不要水印, "
    "背景干净, 循环播放, 短视频"
)
"""What else captions say: it names nothing."""
